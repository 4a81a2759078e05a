"""What the sections of the Estimator tab show, as plain numbers."""

from dataclasses import dataclass

from intraslice.diagnostics.sensitivity import Misjudged as Misjudged
from intraslice.diagnostics.sensitivity import RankAgreement, Sensitivity, compare_ranks
from intraslice.planning.profile import Profile
from intraslice.planning.ratios import Ratios
from intraslice.pretrained.precision import Precision
from intraslice.search.ratio_search import SearchProgress
from intraslice.search.ratio_search import SearchResult as SearchResult

from ..i18n.language import lazy_gettext
from ..ratios.ratio_files import locked_text
from ..state.views import HERE, Provenance


@dataclass(frozen=True)
class EstimatorCheckView:
    """Every module sliced alone at `ratio`: the library's comparison of its damage, in nats, with the predictions."""

    ratio: float
    agreement: RankAgreement
    measured_on: str
    source: Provenance = HERE
    is_complete = True  # a part is not shown


def estimator_check_view(
    sensitivity: Sensitivity, profile: Profile, dtype: Precision, source: Provenance = HERE
) -> EstimatorCheckView:
    """Measured and predicted damage, as plain numbers."""
    assert sensitivity.ratio is not None  # measured alone, not in context
    note = lazy_gettext(" in {dtype}, whose rounding alone adds about {nats:.3f} nats", dtype=dtype, nats=0.002)
    rounding = "" if dtype == "float32" else note
    measured_on = lazy_gettext("{tokens:,} held-out tokens{rounding}", tokens=sensitivity.tokens, rounding=rounding)
    return EstimatorCheckView(sensitivity.ratio, compare_ranks(sensitivity, profile), measured_on, source)


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

    def locked(self) -> str:
        """The ratios found so far, as locked ratios, but for one."""
        ratios = self.found.ratios
        # The MLP that loses least makes up what the found size differs from the target.
        unlocked = min((place for place in sorted(ratios) if place[1] == "mlp"), key=ratios.__getitem__)
        return locked_text((*place, ratio) for place, ratio in sorted(ratios.items()) if place != unlocked)
