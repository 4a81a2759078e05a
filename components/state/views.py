"""What the page shows, as plain numbers: no tensors, no gradio. Charts and texts read them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from components.i18n.language import lazy_gettext


@dataclass(frozen=True)
class LayerView:
    """One layer: the estimated ratios (fractions removed) and the sizes that are really kept, of the dense ones."""

    attention: float
    mlp: float
    heads: int
    heads_dense: int
    dim: int
    dim_dense: int
    neurons: int
    neurons_dense: int


@dataclass(frozen=True)
class PlanView:
    """A whole plan. `others` maps another estimator's name to its (attention, MLP) ratio of every layer."""

    estimator: str
    asked: float
    removed: float
    bias: float  # given, or found by the importances
    cap: float
    layers: tuple[LayerView, ...]
    others: Mapping[str, tuple[tuple[float, float], ...]]
    parameters_dense: int
    parameters_sliced: int
    decoder_dense: int
    decoder_sliced: int
    kv_dense: float
    kv_sliced: float
    flops_dense: int = 0  # a token that attends to `context` tokens
    flops_sliced: int = 0
    context: int = 0
    bytes_per_value: int = 4
    provisional: str = ""  # what the numbers come from, while the whole calibration is not there


@dataclass(frozen=True)
class ImportanceCurve:
    """Importances of all layers' units and of one layer's, descending, sampled evenly over the units.

    What lies below `threshold` goes; `everyone_below` and `chosen_below` are these shares, counted on all units.
    Without a threshold the estimator did not look at importances. Units go one by one, or many together.
    """

    unit: str
    everyone: Sequence[float]
    chosen: Sequence[float]
    threshold: float | None
    everyone_below: float
    chosen_below: float
    one_by_one: bool = True


@dataclass(frozen=True)
class Reading:
    """A number as far as it is known: after `windows` of `of`, with its standard error."""

    value: float
    error: float | None
    windows: int
    of: int


@dataclass(frozen=True)
class Perplexities:
    """Dense and sliced perplexity, once all windows are read, and on what text (`protocol`).

    The readings grow window by window; `ratio` is sliced over dense on the same windows. `expected` lies between what
    is measured. The sliced model comes from a calibration on `sequences` of `all_sequences`.
    """

    dense: float | None = None
    sliced: float | None = None
    protocol: str = ""
    text: str = lazy_gettext("held-out text")
    dense_reading: Reading | None = None
    sliced_reading: Reading | None = None
    ratio: Reading | None = None
    expected: float | None = None
    sequences: int = 0
    all_sequences: int = 0


@dataclass(frozen=True)
class Beside:
    """The pinned setting A, for differences to it: what it is called, its plan, and what is measured of it."""

    words: str
    plan: PlanView
    measured: Perplexities


@dataclass(frozen=True)
class SettlingView:
    """How far the ratios were from the latest ones, after how many of `all_sequences`. Fractions of a module."""

    sequences: Sequence[int]
    attention: Sequence[float]  # mean over layers
    mlp: Sequence[float]
    largest: Sequence[float]
    all_sequences: int
