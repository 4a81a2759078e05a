"""What the sections of the Estimator tab show, as plain numbers."""

from __future__ import annotations

from dataclasses import dataclass
from math import prod

from intraslice.diagnostics.sensitivity import Misjudged as Misjudged
from intraslice.diagnostics.sensitivity import RankAgreement

from ..state.views import HERE, Provenance


@dataclass(frozen=True)
class EstimatorCheckView:
    """Every module sliced alone at `ratio`: the library's comparison of its damage, in nats, with the predictions."""

    ratio: float
    agreement: RankAgreement
    measured_on: str
    source: Provenance = HERE
    is_complete = True  # a part is not shown


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
