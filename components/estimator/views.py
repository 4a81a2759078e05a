"""What the sections of the Estimator tab show, as plain numbers."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from math import prod
from typing import NamedTuple

from ..state.views import HERE, Provenance


@dataclass(frozen=True)
class ModuleCheck:
    """One module sliced alone: `damage` is KL from the dense model in nats per token, `error` its standard error.

    `predicted` is by estimator. Ranks are among the modules of the same kind; rank 1 does the most damage.
    """

    layer: int
    module: str
    damage: float
    error: float
    rank: int
    predicted: Mapping[str, float]
    predicted_ranks: Mapping[str, int]


class Misjudged(NamedTuple):
    """A module whose measured rank is far from the predicted rank, among `of` modules of its kind."""

    estimator: str
    layer: int
    module: str
    measured: int
    predicted: int
    of: int


@dataclass(frozen=True)
class EstimatorCheckView:
    """Every module sliced alone at `ratio`. `rho` is Spearman's correlation by estimator and kind of module, or None.

    `ceiling` is the expected rho of a perfect estimator, given the sampling noise of the tokens. `misjudged` is sorted,
    worst first.
    """

    ratio: float
    tokens: int
    modules: tuple[ModuleCheck, ...]
    rho: Mapping[str, Mapping[str, float | None]]
    ceiling: Mapping[str, float | None]
    misjudged: tuple[Misjudged, ...]
    measured_on: str
    source: Provenance = HERE


@dataclass(frozen=True)
class RatioSearchView:
    """The ratios of the attention and the MLP of every layer: of the estimator, and found so far.

    `changes` has the relative change of KL in each generation, on the windows that decided, 0 where nothing was better.
    `before` and `after` are KL divergences on windows that no generation read, in nats per token, at the end.
    """

    start: tuple[tuple[float, float], ...]
    found: tuple[tuple[float, float], ...]
    passes: float
    budget: float
    changes: tuple[float, ...]
    before: float | None = None
    after: float | None = None

    @property
    def is_complete(self) -> bool:
        """Whether the budget is spent."""
        return self.after is not None

    @property
    def change(self) -> float:
        """The product of the generations' changes of KL, less 1; it is too good, since these windows decided."""
        return prod(1 + change for change in self.changes) - 1
