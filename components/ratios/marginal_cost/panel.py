"""*Marginal cost per parameter* on the Ratios tab: chart, best swap, and differences to other plans."""

from __future__ import annotations

from collections.abc import Iterator
from html import escape
from typing import Any, NamedTuple

import gradio as gr

from ...frame.context import CHEAP, HEAVY, PRIVATE, Context
from ...gradio_compat.signatures import partial_handler
from ...i18n.language import LazyString, gettext, lazy_gettext, translate
from ...state.request import Request
from ...state.session import Session
from ...ui import formatting
from ...ui.chart_bridge import chart
from ...ui.explainers import fold
from ...ui.handlers import LiveOutput, spread_settings, unchanged
from ...ui.labels import ESTIMATORS, MODULES_IN_WORDS
from .chart import marginal_cost_chart
from .measure import MarginalCostCache
from .views import MarginalCostView, ModuleCost, OtherPlan

NOTICE = lazy_gettext("Other measurements wait meanwhile. Finished parts are kept when you cancel.")


class Shown(NamedTuple):
    """Outputs of `show`."""

    chart: Any
    summary: Any
    job: Any  # the row of buttons, while there is something to measure


class Measured(NamedTuple):
    """Outputs of `measure`."""

    chart: Any
    summary: Any
    job: Any
    progress: Any


class MarginalCostPanel(NamedTuple):
    """The section's components, and the source of their numbers."""

    costs: MarginalCostCache
    shown: Shown
    measure: gr.Button
    cancel: gr.Button
    progress: gr.HTML


def show(costs: MarginalCostCache, request: Request, layer: int, client: str) -> Shown:
    """Measured and predicted marginal costs of this slice, if they are measured: chart (JSON), summary (HTML)."""
    try:
        view = costs.cached(request)
    except ValueError:  # the headline shows what is wrong with the setting
        return unchanged(Shown)
    points = marginal_cost_chart(view, request.slicing.estimator, int(layer)).to_json()
    return Shown(points, catalogue(view), gr.update(visible=view is None))


def measure(costs: MarginalCostCache, request: Request, layer: int, client: str) -> Iterator[Measured]:
    """Prune each module slightly more and less; yields chart (JSON), summary and progress (HTML). Takes minutes."""
    for event in costs.measure(request, client):
        if isinstance(event, MarginalCostView):
            yield Measured(*show(costs, request, layer, client), progress="")
        else:
            notice = f'<p class="isx-quiet">{translate(NOTICE)}</p>' if event.kind == "busy" else ""
            yield unchanged(Measured)._replace(progress=formatting.status(event) + notice)


def stop(session: Session, client: str) -> None:
    """Stop the measurement at its next step."""
    session.jobs.halt(client, "prices")


def build(session: Session, first: Request) -> MarginalCostPanel:
    """Chart, summary and the job's buttons, initially for `first`. Called inside the Ratios tab."""
    costs = MarginalCostCache(session)
    view, estimator = costs.cached(first), first.slicing.estimator
    points = chart(
        LazyString(lambda: marginal_cost_chart(view, estimator).to_json()), height=440, elem_id="price-chart"
    )
    summary = gr.HTML(LazyString(lambda: catalogue(view)), elem_id="price-words", apply_default_css=False)
    with gr.Row(elem_classes="isx-job", visible=view is None) as job:
        button = gr.Button(lazy_gettext("Measure marginal costs"), size="md", elem_id="price-measure", min_width=210)
        cancel = gr.Button(lazy_gettext("Cancel"), size="md", elem_id="price-cancel", min_width=70)
    progress = gr.HTML(elem_id="price-progress", apply_default_css=False)
    fold("marginal_cost")
    return MarginalCostPanel(costs, Shown(points, summary, job), button, cancel, progress)


def connect(panel: MarginalCostPanel, context: Context) -> None:
    """Update the section after every change of the settings; measure on request."""
    context.choose_layer_by(panel.shown.chart)
    context.subscribe(LiveOutput("ratios", partial_handler(show, panel.costs), panel.shown), context.on_commit)
    inputs = [*context.controls.settings, context.controls.layer]
    outputs = [*Measured(*panel.shown, panel.progress)]
    panel.measure.click(spread_settings(measure, panel.costs), inputs, outputs, api_name="prices", **HEAVY)
    panel.cancel.click(partial_handler(stop, context.session), None, None, **PRIVATE, **CHEAP)


def catalogue(view: MarginalCostView | None) -> str:
    """The best swap, and the differences to other estimators' plans of equal size (HTML)."""
    if view is None:
        return ""
    paragraphs = []
    if (best := view.best_swap) is not None:
        swap = gettext(
            "Moving {fraction:.2%} of the layer parameters from {source} to {target} would change KL by "
            "<b>{change:+.4f} ± {error:.4f}</b> nats per token; the sliced model's KL is {divergence:.3f}.",
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
        "At equal model size, the {estimator} plan differs most from this one in {differences}. By these marginal "
        "costs (linear, for small steps), adopting it would change KL by <b>{change:+.3f} ± {error:.3f}</b>.",
        estimator=escape(ESTIMATORS[other.estimator]),
        differences=differences,
        change=other.change,
        error=other.error,
    )
    return f"<p>{comparison}</p>"


def _place(cost: ModuleCost) -> str:
    return gettext("layer {layer}'s {module}", layer=cost.layer, module=MODULES_IN_WORDS[cost.module])
