"""*Marginal cost per parameter* on the Ratios tab: chart, best swap, and differences to other plans."""

from __future__ import annotations

from collections.abc import Iterator
from html import escape

from ...frame.context import Context
from ...i18n.language import gettext, lazy_gettext
from ...state.request import Request
from ...state.session import Session
from ...ui.explainers import fold
from ...ui.labels import ESTIMATORS, MODULES_IN_WORDS
from ..measured_section import Measured, Section, SectionPanel
from .chart import marginal_cost_chart
from .measure import JOB, MarginalCostCache
from .views import MarginalCostView, ModuleCost, OtherPlan


def measure(section: Section[MarginalCostView], request: Request, layer: int, client: str) -> Iterator[Measured]:
    """Prune each module up to 10 percentage points more and less; yields chart (JSON), summary and progress (HTML).

    Takes minutes.
    """
    yield from section.measure(request, layer, client)


def build(session: Session, first: Request) -> SectionPanel:
    """Chart, summary and the job's buttons, initially for `first`. Called inside the Ratios tab."""
    section = Section(MarginalCostCache(session), marginal_cost_chart, catalogue, JOB, "price", session)
    panel = section.build(first, lazy_gettext("Measure marginal costs"), 440)
    fold("marginal_cost")
    return panel


def connect(panel: SectionPanel, context: Context) -> None:
    """Update the section after every change of the settings; measure on request."""
    panel.section.connect(panel, context, context.on_commit, measure)


def catalogue(view: MarginalCostView | None, estimator: str) -> str:
    """The best swap, and the differences to other estimators' plans of equal size (HTML)."""
    if view is None:
        return ""
    paragraphs = []
    if (best := view.best_swap) is not None:
        swap = gettext(
            "Pruning {source} more and {target} less, by {fraction:.2%} of the layer parameters each, is predicted to "
            "change KL by <b>{change:+.4f} ± {error:.4f}</b> nats per token (linear extrapolation, valid for "
            "small steps only); the sliced model's KL is {divergence:.3f}.",
            fraction=best.fraction,
            source=_place(best.source),
            target=_place(best.target),
            change=best.change,
            error=best.error,
            divergence=view.divergence,
        )
        paragraphs.append(f"<p>{swap}</p>")
    paragraphs += [_other(other) for other in view.others]
    return f'<div class="isx-words">{"".join(paragraphs)}</div>'


def _other(other: OtherPlan) -> str:
    differences = "; ".join(
        gettext(
            "layer {layer}'s {module}, {here:.0%} here and {there:.0%} there",
            layer=difference.layer,
            module=MODULES_IN_WORDS[difference.module],
            here=difference.ratio,
            there=difference.other_ratio,
        )
        for difference in other.differences
    )
    comparison = gettext(
        "At equal model size, the {estimator} plan differs most from this one in {differences}. Judging by these "
        "marginal costs (extrapolated linearly, valid for small steps only), adopting it would change KL by "
        "<b>{change:+.3f} ± {error:.3f}</b>.",
        estimator=escape(ESTIMATORS[other.estimator]),
        differences=differences,
        change=other.change,
        error=other.error,
    )
    return f"<p>{comparison}</p>"


def _place(cost: ModuleCost) -> str:
    return gettext("layer {layer}'s {module}", layer=cost.layer, module=MODULES_IN_WORDS[cost.module])
