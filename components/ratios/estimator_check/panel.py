"""*Was it right?* on the Ratios tab: every module sliced alone, as a job; Spearman's rho, and who was misjudged."""

from __future__ import annotations

from collections.abc import Iterator
from html import escape
from typing import Any, NamedTuple

import gradio as gr

from components.frame.context import CHEAP, HEAVY, PRIVATE, Context
from components.gradio_compat.signatures import partial_handler
from components.i18n.language import LazyString, gettext, lazy_gettext, translate
from components.ratios.estimator_check.chart import digits, judged, verdict_chart
from components.ratios.estimator_check.measure import Verdicts
from components.ratios.estimator_check.views import Misjudged, VerdictView
from components.state.request import Request
from components.state.session import Session
from components.ui import formatting
from components.ui.chart_bridge import chart
from components.ui.explainers import fold
from components.ui.handlers import LiveOutput, spread_settings, unchanged
from components.ui.labels import ESTIMATORS, MODULES_IN_WORDS

PATIENCE = lazy_gettext("Other measurements wait meanwhile. Finished parts are kept when you cancel.")


class Shown(NamedTuple):
    """Outputs of `show`."""

    chart: Any
    words: Any
    job: Any  # the row of buttons, while there is something to measure


class Measured(NamedTuple):
    """Outputs of `measure`."""

    chart: Any
    words: Any
    job: Any
    progress: Any


class EstimatorCheckPanel(NamedTuple):
    """The section's components, and where their numbers come from."""

    verdicts: Verdicts
    shown: Shown
    measure: gr.Button
    cancel: gr.Button
    progress: gr.HTML


def show(verdicts: Verdicts, request: Request, layer: int, client: str) -> Shown:
    """Measured sensitivity beside the estimators' foretelling, where it is known: chart (JSON), words (HTML)."""
    try:
        view = verdicts.known(request)
    except ValueError as problem:
        return unchanged(Shown)._replace(words=formatting.problem(problem))
    points = verdict_chart(view, request.slicing.estimator, int(layer)).to_json()
    return Shown(points, catalogue(view, request.slicing.estimator), gr.update(visible=view is None))


def measure(verdicts: Verdicts, request: Request, layer: int, client: str) -> Iterator[Measured]:
    """Slice each module alone, measured as KL; yields chart (JSON), words and progress (HTML). Takes minutes."""
    for event in verdicts.measure(request, client):
        if isinstance(event, VerdictView):
            yield Measured(*show(verdicts, request, layer, client), progress="")
        else:
            patience = f'<p class="isx-quiet">{translate(PATIENCE)}</p>' if event.kind == "busy" else ""
            yield unchanged(Measured)._replace(progress=formatting.status(event) + patience)


def stop(session: Session, client: str) -> None:
    """Stop the measurement at its next module."""
    session.jobs.halt(client, "sensitivity")


def build(session: Session, first: Request) -> EstimatorCheckPanel:
    """Chart, words, and the job's buttons, with what is known of `first`. Called inside the Ratios tab."""
    verdicts = Verdicts(session)
    view, estimator = verdicts.known(first), first.slicing.estimator
    points = chart(LazyString(lambda: verdict_chart(view, estimator).to_json()), height=360, elem_id="verdict-chart")
    words = gr.HTML(LazyString(lambda: catalogue(view, estimator)), elem_id="verdict-words", apply_default_css=False)
    with gr.Row(elem_classes="isx-job", visible=view is None) as job:
        measure = gr.Button(
            lazy_gettext("Measure each module alone"), size="md", elem_id="verdict-measure", min_width=210
        )
        cancel = gr.Button(lazy_gettext("Cancel"), size="md", elem_id="verdict-cancel", min_width=70)
    progress = gr.HTML(elem_id="verdict-progress", apply_default_css=False)
    fold("verdict")
    return EstimatorCheckPanel(verdicts, Shown(points, words, job), measure, cancel, progress)


def connect(panel: EstimatorCheckPanel, context: Context) -> None:
    """Show what is known whenever it may have changed; measure on request."""
    controls, verdicts = context.controls, panel.verdicts
    context.choose_layer_by(panel.shown.chart)
    live_output = LiveOutput("ratios", partial_handler(show, verdicts), panel.shown)
    context.subscribe(live_output, [controls.layer.change, controls.estimator.input])
    inputs, outputs = [*controls.settings, controls.layer], [*Measured(*panel.shown, panel.progress)]
    panel.measure.click(spread_settings(measure, verdicts), inputs, outputs, api_name="sensitivity", **HEAVY)
    panel.cancel.click(partial_handler(stop, context.session), None, None, **PRIVATE, **CHEAP)


def catalogue(view: VerdictView | None, estimator: str) -> str:
    """How good the foretelling is, and who was misjudged (HTML)."""
    if view is None:
        return ""
    correlations = {ESTIMATORS[name]: rhos for name, rhos in view.rho.items()}
    correlations[gettext("at best")] = view.ceiling
    rows = [(name, *(digits(rhos[module]) for module in MODULES_IN_WORDS)) for name, rhos in correlations.items()]
    table = formatting.table([f"ρ, {name}" for name in MODULES_IN_WORDS.values()], rows, "isx-wide")
    shown = judged(view, estimator)
    misjudged = [module for module in view.misjudged if module.estimator == shown]
    name = ESTIMATORS[shown]
    lines = "".join(f"<li>{_misjudged(module, escape(name))}</li>" for module in misjudged)
    if misjudged:
        told = gettext(
            "Predicted and measured ranks differ by more than a third of the layers, beyond noise (rank 1: "
            "most damage):"
        )
    else:
        told = gettext(
            "{name} ranks no module wrong by more than a third of the layers, beyond noise.", name=escape(name)
        )
    return f'{table}<div class="isx-words"><p>{told}</p>{f"<ul>{lines}</ul>" if misjudged else ""}</div>'


def _misjudged(module: Misjudged, name: str) -> str:
    known = module._asdict() | {"module": MODULES_IN_WORDS[module.module], "name": name}
    if module.measured < module.predicted:
        return gettext(
            "Layer {layer}'s {module} does more damage than {name} predicts: measured rank {measured} of {of}, "
            "predicted rank {predicted}.",
            **known,
        )
    return gettext(
        "Layer {layer}'s {module} does less damage than {name} predicts: measured rank {measured} of {of}, "
        "predicted rank {predicted}.",
        **known,
    )
