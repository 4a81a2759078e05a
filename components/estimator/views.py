"""What the sections of the Estimator tab show, as plain numbers."""

from dataclasses import dataclass

from intraslice.diagnostics.sensitivity import Misjudged as Misjudged
from intraslice.diagnostics.sensitivity import RankAgreement
from intraslice.planning.ratios import Ratios
from intraslice.search.ratio_search import SearchProgress
from intraslice.search.ratio_search import SearchResult as SearchResult

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
    """What a search found so far, the ratios with which it began, and its budget in dense passes."""

    start: Ratios
    found: SearchProgress | SearchResult
    budget: float

    @property
    def is_complete(self) -> bool:
        """Whether the budget is spent."""
        return isinstance(self.found, SearchResult)
