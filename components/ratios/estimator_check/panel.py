"""*Estimator check* on the Ratios tab: chart, Spearman's rho, misjudged modules, and the job that measures them."""

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
from .chart import estimator_check_chart, format_rho, shown_estimator
from .measure import EstimatorCheckCache
from .views import EstimatorCheckView, Misjudged

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


class EstimatorCheckPanel(NamedTuple):
    """The section's components, and the source of their numbers."""

    checks: EstimatorCheckCache
    shown: Shown
    measure: gr.Button
    cancel: gr.Button
    progress: gr.HTML


def show(checks: EstimatorCheckCache, request: Request, layer: int, client: str) -> Shown:
    """Measured and predicted damage, if it is measured: chart (JSON), summary (HTML)."""
    try:
        view = checks.cached(request)
    except ValueError as problem:
        return unchanged(Shown)._replace(summary=formatting.problem(problem))
    points = estimator_check_chart(view, request.slicing.estimator, int(layer)).to_json()
    return Shown(points, catalogue(view, request.slicing.estimator), gr.update(visible=view is None))


def measure(checks: EstimatorCheckCache, request: Request, layer: int, client: str) -> Iterator[Measured]:
    """Slice each module alone and measure KL; yields chart (JSON), summary and progress (HTML). Takes minutes."""
    for event in checks.measure(request, client):
        if isinstance(event, EstimatorCheckView):
            yield Measured(*show(checks, request, layer, client), progress="")
        else:
            notice = f'<p class="isx-quiet">{translate(NOTICE)}</p>' if event.kind == "busy" else ""
            yield unchanged(Measured)._replace(progress=formatting.status(event) + notice)


def stop(session: Session, client: str) -> None:
    """Stop the measurement at its next module."""
    session.jobs.halt(client, "sensitivity")


def build(session: Session, first: Request) -> EstimatorCheckPanel:
    """Chart, summary and the job's buttons, initially for `first`. Called inside the Ratios tab."""
    checks = EstimatorCheckCache(session)
    view, estimator = checks.cached(first), first.slicing.estimator
    points = chart(
        LazyString(lambda: estimator_check_chart(view, estimator).to_json()), height=360, elem_id="verdict-chart"
    )
    summary = gr.HTML(LazyString(lambda: catalogue(view, estimator)), elem_id="verdict-words", apply_default_css=False)
    with gr.Row(elem_classes="isx-job", visible=view is None) as job:
        measure = gr.Button(
            lazy_gettext("Measure each module alone"), size="md", elem_id="verdict-measure", min_width=210
        )
        cancel = gr.Button(lazy_gettext("Cancel"), size="md", elem_id="verdict-cancel", min_width=70)
    progress = gr.HTML(elem_id="verdict-progress", apply_default_css=False)
    fold("verdict")
    return EstimatorCheckPanel(checks, Shown(points, summary, job), measure, cancel, progress)


def connect(panel: EstimatorCheckPanel, context: Context) -> None:
    """Update the section after changes of layer or estimator; measure on request."""
    controls, checks = context.controls, panel.checks
    context.choose_layer_by(panel.shown.chart)
    live_output = LiveOutput("ratios", partial_handler(show, checks), panel.shown)
    context.subscribe(live_output, [controls.layer.change, controls.estimator.input])
    inputs, outputs = [*controls.settings, controls.layer], [*Measured(*panel.shown, panel.progress)]
    panel.measure.click(spread_settings(measure, checks), inputs, outputs, api_name="sensitivity", **HEAVY)
    panel.cancel.click(partial_handler(stop, context.session), None, None, **PRIVATE, **CHEAP)


def catalogue(view: EstimatorCheckView | None, estimator: str) -> str:
    """The rank correlations, and the misjudged modules (HTML)."""
    if view is None:
        return ""
    correlations = {ESTIMATORS[name]: rhos for name, rhos in view.rho.items()}
    correlations[gettext("noise ceiling")] = view.ceiling
    rows = [(name, *(format_rho(rhos[module]) for module in MODULES_IN_WORDS)) for name, rhos in correlations.items()]
    table = formatting.table([f"ρ, {name}" for name in MODULES_IN_WORDS.values()], rows, "isx-wide")
    predictor = shown_estimator(view, estimator)
    misjudged = [module for module in view.misjudged if module.estimator == predictor]
    name = ESTIMATORS[predictor]
    lines = "".join(f"<li>{_misjudged(module, escape(name))}</li>" for module in misjudged)
    if misjudged:
        heading = gettext(
            "Predicted and measured ranks differ by more than a third of the layers, beyond noise (rank 1: "
            "most damage):"
        )
    else:
        heading = gettext(
            "Beyond noise, {name} ranks no module more than a third of the number of layers away from its measured "
            "rank.",
            name=escape(name),
        )
    return f'{table}<div class="isx-words"><p>{heading}</p>{f"<ul>{lines}</ul>" if misjudged else ""}</div>'


def _misjudged(module: Misjudged, name: str) -> str:
    values = module._asdict() | {"module": MODULES_IN_WORDS[module.module], "name": name}
    if module.measured < module.predicted:
        return gettext(
            "Slicing layer {layer}'s {module} does more damage than {name} predicts: measured rank {measured} "
            "of {of}, predicted rank {predicted}.",
            **values,
        )
    return gettext(
        "Slicing layer {layer}'s {module} does less damage than {name} predicts: measured rank {measured} of "
        "{of}, predicted rank {predicted}.",
        **values,
    )
