"""What the page shows, as plain numbers: no tensors, no gradio. Charts and texts read them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass


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
    snapshot: str = ""  # what the numbers were measured on, when not now and here


@dataclass(frozen=True)
class ImportanceCurve:
    """Importances of all layers' units and of one layer's, descending, sampled evenly over the units.

    What lies below `threshold` goes; `everyone_below` and `chosen_below` are these shares, counted on all units.
    Without a threshold the estimator did not look at importances.
    """

    unit: str
    everyone: Sequence[float]
    chosen: Sequence[float]
    threshold: float | None
    everyone_below: float
    chosen_below: float


@dataclass(frozen=True)
class Perplexities:
    """Dense and sliced perplexity, where measured, and on what text (`protocol`)."""

    dense: float | None = None
    sliced: float | None = None
    protocol: str = ""
    text: str = "held-out text"
