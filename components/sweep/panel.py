"""The Sweep tab: perplexity of many models against what was removed of them, and against their measured speed."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import NamedTuple

import gradio as gr

from components.page.context import CHEAP, HEAVY, PRIVATE, Page
from components.ratios.panel import fold
from components.session.settings import Settings, Status
from components.sweep import measure as sweeps
from components.sweep.charts import removed_chart, speed_chart
from components.sweep.views import SweepChoice, SweepView
from components.ui import formatting
from components.ui.chart_bridge import chart
from components.ui.downloads import SAVE
from components.ui.handlers import flat, visitor_of
from components.ui.labels import ESTIMATORS, METHODS

SPARSITIES = (5, 10, 15, 20, 25, 30, 35, 40, 50, 60)


class SweepPanel(NamedTuple):
    """The tab's components."""

    methods: gr.CheckboxGroup
    estimators: gr.CheckboxGroup
    sparsities: gr.CheckboxGroup
    speed: gr.Checkbox
    run: gr.Button
    cancel: gr.Button
    csv: gr.Button
    file: gr.DownloadButton
    progress: gr.HTML
    removed: gr.HTML
    fast: gr.HTML

    @property
    def choice(self) -> list[gr.components.Component]:
        """Inputs that make a `SweepChoice`, in its order."""
        return [self.methods, self.estimators, self.sparsities, self.speed]

    @property
    def shown(self) -> list[gr.components.Component]:
        """Outputs that tell how far the sweep is."""
        return [self.progress, self.removed, self.fast]


def build() -> SweepPanel:
    """What to sweep over, its progress, two charts. Called inside a `gr.Tab`."""
    first = SweepChoice()
    gr.HTML(
        '<p class="isx-lead">Slice many times, and see what each method pays for every per cent. '
        "Bias, cap and order are those of the controls; ratios given by hand are left out.</p>",
        apply_default_css=False,
    )
    names = [(name, method) for method, name in METHODS.items()]
    with gr.Row(elem_id="sweep-choice"):
        methods = gr.CheckboxGroup(names, value=list(first.methods), label="Methods", min_width=260)
        estimators = gr.CheckboxGroup(
            [(ESTIMATORS[name], name) for name in ("pca", "fisher", "uniform")],
            value=list(first.estimators),
            label="Ratio estimators (IntraSlice and IntraSlice+)",
            min_width=260,
        )
        percents = [(f"{percent} %", percent) for percent in SPARSITIES]
        sparsities = gr.CheckboxGroup(percents, value=list(first.sparsities), label="Removed", min_width=260)
    speed = gr.Checkbox(first.speed, label="Measure speed too (takes longer)", container=False, elem_id="sweep-speed")
    with gr.Row(elem_id="sweep-buttons"):
        run = gr.Button("Run the sweep", variant="primary", elem_id="sweep-run", min_width=160, scale=0)
        cancel = gr.Button("Cancel", elem_id="sweep-cancel", min_width=100, scale=0)
        csv = gr.Button("Save CSV", elem_id="sweep-csv", min_width=120, scale=0)
    file = gr.DownloadButton(visible="hidden")
    progress = gr.HTML(elem_id="sweep-progress", apply_default_css=False)
    removed = chart(height=440, elem_id="sweep-chart")
    fast = chart(height=360, elem_id="sweep-speed-chart")
    fold("sweep")
    return SweepPanel(methods, estimators, sparsities, speed, run, cancel, csv, file, progress, removed, fast)


def connect(panel: SweepPanel, page: Page) -> None:
    """Attach the tab's handlers. Called inside the `gr.Blocks()` that holds the panel."""
    session, controls, outbox = page.session, page.controls, page.outbox
    asking = [*controls.settings, *panel.choice]

    def look(
        settings: Settings, methods: list[str], estimators: list[str], sparsities: list[float], speed: bool, opened: str
    ) -> tuple:
        """What is there of this sweep already, and how long the rest will take."""
        if opened != "sweep":
            return gr.skip(), gr.skip(), gr.skip()
        choice = SweepChoice(methods, estimators, sparsities, speed)
        try:
            return _shown(sweeps.known(session, settings, choice), sweeps.seconds(session, settings, choice))
        except ValueError as problem:  # not calibrated yet, or a choice of nothing
            return f'<p class="isx-quiet">{formatting.escape(str(problem))}</p>', "", ""

    def sweep(
        settings: Settings,
        methods: list[str],
        estimators: list[str],
        sparsities: list[float],
        speed: bool,
        request: gr.Request,
    ) -> Iterator[tuple]:
        """Measure perplexity, and speed if asked, of every method x estimator x sparsity (per cent).

        Points that are measured already are read from the disk; a sweep that was stopped goes on where it was. Yields
        two status lines (HTML) and two charts (JSON).
        """
        visitor, view = visitor_of(request), None
        job = session.jobs.start(visitor, live=False)
        choice = SweepChoice(methods, estimators, sparsities, speed)
        for event in session.jobs.run(visitor, job, sweeps.sweeping(session, settings, choice)):
            if isinstance(event, Status):
                line = formatting.status(event)
                ended = event.kind == "ready" and view is not None
                yield line, _done(view) if ended else line, gr.skip(), gr.skip()
            else:
                view = event
                yield (gr.skip(), gr.skip(), *_shown(view)[1:])

    def save(
        settings: Settings, methods: list[str], estimators: list[str], sparsities: list[float], speed: bool
    ) -> str:
        """The points of a sweep that are measured already, as a CSV file."""
        choice = SweepChoice(methods, estimators, sparsities, speed)
        with outbox.errors():
            return str(outbox.put("sweep.csv", lambda path: sweeps.write_csv(session, settings, choice, path)))

    def stop(request: gr.Request) -> None:
        """Stop the sweep at its next step."""
        session.halt(visitor_of(request))

    def pick(event: gr.EventData) -> tuple:
        """The setting of the point that was clicked, for the controls."""
        percent, *estimator = event.pick.split()
        return float(percent), estimator[0] if estimator else gr.skip(), "", str(time.time())

    chosen = [component.change for component in panel.choice]
    moved = [
        controls.bias_slider.release,
        controls.bias_auto.input,
        controls.cap.release,
        controls.order.input,
        controls.iterative.input,
    ]
    seen = {"fn": flat(look), "inputs": [*asking, page.tab], "outputs": panel.shown, **CHEAP, **PRIVATE}
    gr.on([*chosen, *moved], **seen, trigger_mode="always_last")
    for end in (page.opened["sweep"], *page.prepared):
        end.then(**seen)
    panel.run.click(flat(sweep), asking, [page.status, *panel.shown], api_name="sweep", **HEAVY)
    panel.cancel.click(stop, None, None, **CHEAP, **PRIVATE)
    panel.csv.click(flat(save), asking, panel.file, api_name="sweep_csv", **CHEAP).success(
        None, panel.file, None, js=SAVE, **CHEAP
    )
    for one in (panel.removed, panel.fast):
        one.select(pick, None, [controls.sparsity, controls.estimator, controls.locked, page.anew], **CHEAP, **PRIVATE)


def _shown(view: SweepView, seconds: float = 0.0) -> tuple[str, str, str]:
    missing = view.wanted - len(view.points)
    words = (
        f"{missing} of {view.wanted} points are not measured yet: about {formatting.seconds(seconds)} on this machine."
        if missing
        else f"All {view.wanted} points are measured."
    )
    charts = removed_chart(view).to_json() if view.points else "", ""
    if any(point.prefill is not None for point in view.points):
        charts = charts[0], speed_chart(view).to_json()
    return f'<p class="isx-quiet">{words}</p>', *charts


def _done(view: SweepView) -> str:
    return (
        _shown(view)[0]
        if len(view.points) == view.wanted
        else (
            f'<p class="isx-quiet">Stopped with {len(view.points)} of {view.wanted} points; Run goes on from there.</p>'
        )
    )
