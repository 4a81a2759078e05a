"""*Was it right?* on the Ratios tab: every module sliced alone, as a job; Spearman's rho, and who was misjudged."""

from __future__ import annotations

from collections.abc import Iterator
from html import escape
from typing import Any, NamedTuple

import gradio as gr

from components.page.context import CHEAP, HEAVY, PRIVATE, Page
from components.ratios.estimator_check.chart import judged, number, verdict_chart
from components.ratios.estimator_check.measure import Verdicts
from components.ratios.estimator_check.views import VerdictView
from components.session.settings import Settings
from components.ui import formatting
from components.ui.chart_bridge import chart
from components.ui.explainers import fold
from components.ui.handlers import Follower, flat, visitor_of
from components.ui.labels import ESTIMATORS

MODULES = {"attention": "attention", "mlp": "MLP"}
PATIENCE = "Other measurements wait for it; what is done when you cancel is kept."


class VerdictPanel(NamedTuple):
    """The section's components, and what they show."""

    verdicts: Verdicts
    chart: gr.HTML
    words: gr.HTML
    job: gr.Row
    measure: gr.Button
    cancel: gr.Button
    progress: gr.HTML


def build(session: Any, first: Settings) -> VerdictPanel:
    """Chart, words, and the job's buttons, with what is known of `first`. Called inside the Ratios tab."""
    verdicts = Verdicts(session)
    view = verdicts.known(first)
    points = chart(verdict_chart(view, first.estimator).to_json(), height=360, elem_id="verdict-chart")
    words = gr.HTML(words_of(view, first.estimator), elem_id="verdict-words", apply_default_css=False)
    with gr.Row(elem_classes="isx-job", visible=view is None) as job:
        measure = gr.Button("Measure each module alone", size="md", elem_id="verdict-measure", min_width=210)
        cancel = gr.Button("Cancel", size="md", elem_id="verdict-cancel", min_width=70)
    progress = gr.HTML(elem_id="verdict-progress", apply_default_css=False)
    fold("verdict")
    return VerdictPanel(verdicts, points, words, job, measure, cancel, progress)


def connect(panel: VerdictPanel, page: Page) -> None:
    """Show what is known whenever it may have changed; measure on request."""
    verdicts, controls = panel.verdicts, page.controls
    shown = [panel.chart, panel.words, panel.job]

    def show(settings: Settings, layer: int, request: gr.Request) -> tuple:
        """Measured sensitivity beside the estimators' foretelling, where it is known: chart (JSON), words (HTML)."""
        try:
            view = verdicts.known(settings)
        except ValueError as problem:
            return gr.skip(), formatting.problem(problem), gr.skip()
        words = words_of(view, settings.estimator)
        return verdict_chart(view, settings.estimator, int(layer)).to_json(), words, gr.update(visible=view is None)

    def measure(settings: Settings, layer: int, request: gr.Request) -> Iterator[tuple]:
        """Slice each module alone and take its loss; yields chart (JSON), words and progress (HTML). Takes minutes."""
        for event in verdicts.measure(settings, visitor_of(request)):
            if event.text == "Measured":
                yield *show(settings, layer, request), ""
            else:
                patience = f'<p class="isx-quiet">{PATIENCE}</p>' if event.kind == "busy" else ""
                yield gr.skip(), gr.skip(), gr.skip(), formatting.status(event) + patience

    def halt(request: gr.Request) -> None:
        page.session.halt(visitor_of(request))

    page.choosing(panel.chart)
    page.follow(Follower("ratios", show, shown), [controls.layer.change, controls.estimator.input])
    inputs = [*controls.settings, controls.layer]
    panel.measure.click(flat(measure), inputs, [*shown, panel.progress], api_name="sensitivity", **HEAVY)
    panel.cancel.click(halt, None, None, **PRIVATE, **CHEAP)


def words_of(view: VerdictView | None, estimator: str) -> str:
    """How good the foretelling is, and who was misjudged (HTML)."""
    if view is None:
        return ""
    rows = [(ESTIMATORS[name], *(number(rhos[kind]) for kind in MODULES)) for name, rhos in view.rho.items()] + [
        ("at best, for the noise", *(number(view.ceiling[kind]) for kind in MODULES))
    ]
    table = formatting.table([f"ρ, {name}" for name in MODULES.values()], rows, "isx-wide")
    own = [one for one in view.misjudged if one[0] == judged(estimator)]
    name = ESTIMATORS[judged(estimator)]
    lines = "".join(
        f"<li>Layer {layer}'s {MODULES[module]} hurts {'more' if measured < foretold else 'less'} than {escape(name)} "
        f"foretells: number {measured} of {of} as measured, number {foretold} as foretold.</li>"
        for _, layer, module, measured, foretold, of in own
    )
    verdict = (
        f"<p>Misjudged by more than a third of the layers, noise allowed for:</p><ul>{lines}</ul>"
        if own
        else f"<p>{escape(name)} misjudges no module by more than a third of the layers, noise allowed for.</p>"
    )
    return f'{table}<div class="isx-words">{verdict}</div>'
