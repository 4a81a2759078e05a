"""What the page shows, as plain numbers: no tensors, no gradio. `session.py` makes them, charts and texts read them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple


class Settings(NamedTuple):
    """The values of the controls, in the order in which the handlers receive them."""

    model: str = "default"
    text: str = "default"
    upload: str | None = None
    sequences: int = 32
    length: int = 512
    seed: int = 0
    sparsity: float = 30  # per cent, as the slider shows it
    estimator: str = "pca"
    bias: float | None = None  # as the importances have it
    cap: float = 80  # per cent
    order: str = "one-shot"
    iterative: bool = False
    locked: str = ""  # ratios given by hand: "7 attention 25, 3 mlp 0", per cent


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


@dataclass(frozen=True)
class Status:
    """What the page is doing. `total` 0 means nothing to count; `kind` is busy, ready, snapshot or error."""

    text: str
    kind: str = "busy"
    done: int = 0
    total: int = 0
    seconds_left: float | None = None


@dataclass(frozen=True)
class ModuleVerdict:
    """One module sliced alone: what the loss gained (nats a token), its standard error, and what was foretold of it.

    `foretold` and `places` are by estimator; place 1 hurts most among the modules of its kind.
    """

    layer: int
    module: str
    increase: float
    error: float
    place: int
    foretold: Mapping[str, float]
    places: Mapping[str, int]


@dataclass(frozen=True)
class VerdictView:
    """Every module sliced alone at `ratio`. `rho` is Spearman's, by estimator and kind of module, where it exists.

    `ceiling` is about the rho that a perfect estimator would reach, the noise of the tokens being what it is.
    `misjudged` is (estimator, layer, module, measured place, foretold place, of how many), worst first.
    """

    ratio: float
    tokens: int
    modules: tuple[ModuleVerdict, ...]
    rho: Mapping[str, Mapping[str, float | None]]
    ceiling: Mapping[str, float | None]
    misjudged: tuple[tuple[str, int, str, int, int, int], ...]
    measured_on: str


class SweepChoice(NamedTuple):
    """Which points a sweep has: sparsities in per cent; `speed` asks for measured speed as well."""

    methods: Sequence[str] = ("intraslice", "crossmodule")
    estimators: Sequence[str] = ("pca", "uniform")
    sparsities: Sequence[float] = (10, 20, 30, 40)
    speed: bool = False


@dataclass(frozen=True)
class SweepPoint:
    """One model of a sweep. `estimator` is empty where the method uses none, `perplexity` None where out of reach.

    `asked` and `removed` are fractions of the layers' parameters; `prefill` and `decode` are speeds, in times dense.
    """

    method: str
    estimator: str
    asked: float
    removed: float | None
    parameters: int | None
    perplexity: float | None
    prefill: float | None = None
    decode: float | None = None
    note: str = ""


@dataclass(frozen=True)
class SweepView:
    """The points of a sweep that are there, of how many, and what they were measured on."""

    dense: float | None
    points: tuple[SweepPoint, ...]
    wanted: int
    protocol: str
    speed_protocol: str = ""
