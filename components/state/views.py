"""Plain numbers that charts and texts show: no tensors, no gradio."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal, NamedTuple

from ..i18n.language import lazy_gettext
from ..jobs.status import Status
from .request import Request


@dataclass(frozen=True)
class Provenance:
    """Numbers measured "here" on all data, "so far" on some sequences, or "before" (`precomputed.py`) on a day."""

    kind: Literal["here", "so far", "before"]
    sequences: int = 0
    all_sequences: int = 0
    day: str = ""
    label: str = ""


HERE, SO_FAR = Provenance("here"), Provenance("so far")


@dataclass(frozen=True)
class LayerView:
    """One layer: its planned ratios (fractions to remove, before rounding), its sizes after slicing and when dense."""

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
    """A whole plan. `others` maps the other estimators' names to their (attention, MLP) ratios of each layer."""

    estimator: str
    target_sparsity: float  # fraction of the layers' parameters to remove
    removed: float  # actual sparsity
    bias: float  # set by the user or by the importances
    cap: float
    layers: tuple[LayerView, ...]
    others: Mapping[str, tuple[tuple[float, float], ...]]
    parameters_dense: int
    parameters_sliced: int
    decoder: tuple[int, int]  # parameters of the layers, dense and sliced
    kv: tuple[float, float]  # bytes of the KV cache per token, dense and sliced
    flops: tuple[int, int] = (0, 0)  # dense and sliced, of a token that attends to `context` tokens
    context: int = 0
    bytes_per_value: int = 4
    source: Provenance = HERE  # of the calibration


@dataclass(frozen=True)
class ImportanceCurve:
    """Importances of the units of all layers and of the chosen layer, descending, sampled evenly over the units.

    Units below `threshold`, None without importances, are removed, `one_by_one` or several together; `all_below` and
    `chosen_below` are their fractions, counted on all units. The layer that is pruned most has `rank` 1.
    `rules`: what keeps or removes each query head in attention (`RULES` of the library); empty where it is not known.
    """

    unit: str
    all_layers: Sequence[float]
    chosen: Sequence[float]
    threshold: float | None
    all_below: float
    chosen_below: float
    one_by_one: bool = True
    rank: int = 1
    rules: tuple[str, ...] = ()


@dataclass(frozen=True)
class Reading:
    """A measurement with its standard error, after `windows` of `all_windows` evaluation windows."""

    value: float
    error: float | None
    windows: float
    all_windows: int

    @property
    def is_whole(self) -> bool:
        """Whether it includes all windows."""
        return self.windows == self.all_windows


@dataclass(frozen=True)
class PrecomputedCosts:
    """A slice's KL from the dense model (nats per token) and relative speeds, as they were measured on a day."""

    day: str
    divergence: float
    prefill: float | None
    decode: float | None


class Basis(NamedTuple):
    """What perplexities have in common that can be compared. `weights` is a digest, `text` a name or a file."""

    weights: str
    text: str
    tokens: int
    window: int
    dtype: str


@dataclass(frozen=True)
class Perplexities:
    """Dense and sliced perplexity, and the protocol by which they are measured.

    The readings are updated after each window; `ratio` is sliced over dense on the same windows. `expected` is
    interpolated between measured perplexities. The sliced model's calibration is that of `source`.
    """

    dense: Reading | None = None
    sliced: Reading | None = None
    ratio: Reading | None = None
    expected: float | None = None
    protocol: str = ""
    text: str = lazy_gettext("held-out text")
    source: Provenance = SO_FAR
    costs: PrecomputedCosts | None = None
    divergence: float | None = None  # KL from the dense model in nats per token, measured here
    basis: Basis | None = None

    @property
    def values(self) -> tuple[float | None, float | None]:
        """Dense and sliced perplexity; None before all windows are measured."""
        dense, sliced = (
            reading.value if reading and reading.is_whole else None for reading in (self.dense, self.sliced)
        )
        return dense, sliced


@dataclass(frozen=True)
class PinnedView:
    """The pinned setting A, with which the current setting is compared."""

    name: str
    plan: PlanView
    measured: Perplexities


@dataclass(frozen=True)
class View:
    """What the page shows of a setting outside of the tabs, and what runs for the client who looks at it.

    `status` says what the status line shows; of two views, the one whose status has the greater number is newer.
    `problem` says why there is no plan. `is_current` is whether the client still looks at this setting.
    """

    request: Request
    plan: PlanView | None = None
    perplexities: Perplexities = Perplexities()
    problem: ValueError | None = None
    pinned: View | None = None
    is_measuring: bool = False
    is_current: bool = True
    status: Status = field(default=Status("", "ready"), compare=False)


@dataclass(frozen=True)
class ConvergenceView:
    """Differences of the ratios to the latest ones by number of calibration sequences; fractions of a module."""

    sequences: Sequence[int]
    attention: Sequence[float]  # mean over layers
    mlp: Sequence[float]  # mean over layers
    largest: Sequence[float]
    all_sequences: int
