"""The Export tab: the sliced model, its plan, a report, and the words and the link that make this view again."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import gradio as gr

from components.assets import ASSETS
from components.export import files as exports
from components.export.report import Report, html
from components.page.context import CHEAP, HEAVY, PRIVATE, Page
from components.ratios.charts import importance_chart, ratio_chart
from components.session.settings import Settings, Status
from components.sweep import measure as sweeps
from components.sweep.charts import removed_chart, speed_chart
from components.sweep.views import SweepChoice
from components.ui import formatting
from components.ui.chart_bridge import PLOTLY
from components.ui.downloads import SAVE
from components.ui.handlers import flat, visitor_of

LINK = """<div class="isx-copy"><input type="text" readonly aria-label="Link to this view">
  <button type="button" aria-label="Copy the link">Copy</button></div>"""
WORDS = """<div class="isx-copy"><pre tabindex="0" role="region" aria-label="{label}"></pre>
  <button type="button" aria-label="Copy: {label}">Copy</button></div>"""


class ExportPanel(NamedTuple):
    """The tab's components. Each button has a hidden download button that hands its file to the browser."""

    about: gr.HTML
    checkpoint: gr.Button
    plan: gr.Button
    report: gr.Button
    checkpoint_file: gr.DownloadButton
    plan_file: gr.DownloadButton
    report_file: gr.DownloadButton
    progress: gr.HTML
    snippet: gr.HTML
    command: gr.HTML


def build() -> ExportPanel:
    """Three downloads, the reload snippet, the command lines, the link. Called inside a `gr.Tab`."""
    about = gr.HTML(elem_id="export-about", apply_default_css=False)
    with gr.Row(elem_id="export-buttons"):
        with gr.Column(min_width=220):
            checkpoint = gr.Button("Sliced model (.zip)", variant="primary", elem_id="export-checkpoint")
            _small("Weights as safetensors, JSON and tokenizer; opens without the dense model.")
        with gr.Column(min_width=220):
            plan = gr.Button("Plan (.json)", elem_id="export-plan")
            _small("What every layer keeps, why, and how it was measured.")
        with gr.Column(min_width=220):
            report = gr.Button("Report (.html)", elem_id="export-report")
            _small("This view's charts, tables and numbers as one page that opens offline.")
    files = [gr.DownloadButton(visible="hidden") for _ in range(3)]
    progress = gr.HTML(elem_id="export-progress", apply_default_css=False)
    gr.HTML("<h3>Link to this view</h3>", apply_default_css=False)
    _copied(LINK, "export-link")
    gr.HTML("<h3>Open it again</h3>", apply_default_css=False)
    _small("Unpack the zip, and in a Python that has this library installed:")
    snippet = _copied(WORDS.format(label="Open it again"), "export-snippet")
    gr.HTML("<h3>The same from a command line</h3>", apply_default_css=False)
    _small("This page's perplexity; the folder that the zip holds; this page's greedy answer.")
    command = _copied(WORDS.format(label="The same from a command line"), "export-command")
    return ExportPanel(about, checkpoint, plan, report, *files, progress, snippet, command)


def connect(panel: ExportPanel, page: Page, choice: list[gr.components.Component]) -> None:
    """Attach the tab's handlers; `choice` are the inputs of the sweep that a report shows."""
    session, controls, outbox = page.session, page.controls, page.outbox

    def look(settings: Settings, prompt: str, opened: str) -> tuple:
        """What the buttons would give, the snippet and the command lines, for the current settings."""
        if opened != "export":
            return gr.skip(), gr.skip(), gr.skip()
        try:
            plan = session.plan(settings)
            words = exports.snippet(settings, prompt), exports.command_lines(session, settings, prompt)
        except ValueError as problem:
            return formatting.problem(problem), gr.skip(), gr.skip()
        return formatting.export(plan, settings), *words

    def checkpoint(settings: Settings, request: gr.Request) -> Iterator[tuple]:
        """The sliced model as a zip: safetensors, JSON and tokenizer; slices first where that is still to do.

        Yields two status lines (HTML), then the file.
        """
        visitor = visitor_of(request)
        job = session.jobs.start(visitor, live=False)
        made: list[Path] = []

        def work() -> Iterator[Status]:
            made.append((yield from exports.write_checkpoint(session, settings, outbox)))
            yield Status(f"{made[0].name}, {made[0].stat().st_size / 1e6:.0f} MB", "ready")

        yield gr.skip(), gr.skip(), None  # the last one's file must not be given again
        for event in session.jobs.run(visitor, job, work()):
            line = formatting.status(event)
            yield line, line, str(made[0]) if made else gr.skip()

    def plan(settings: Settings) -> str:
        """What every layer keeps and why, with sizes and protocol, as a JSON file."""
        with outbox.errors():
            name = f"{exports.checkpoint_name(settings)}-plan.json"
            return str(outbox.put(name, lambda path: exports.write_plan(session, settings, path)))

    def report(
        settings: Settings,
        layer: int,
        prompt: str,
        methods: list[str],
        estimators: list[str],
        sparsities: list[float],
        speed: bool,
    ) -> str:
        """The current view as one HTML file that opens offline: charts, tables, settings, perplexities, command lines.

        `methods`, `estimators`, `sparsities` and `speed` choose the sweep that it shows, where one is measured.
        """
        with outbox.errors():
            shown = session.plan(settings)
            if shown is None:
                raise ValueError("this model is not calibrated on this text yet; press Load and calibrate")
            layer = min(int(layer), len(shown.layers) - 1)
            charts = [ratio_chart(shown, layer), importance_chart(session.importances(settings, layer), layer)]
            choice = SweepChoice(methods, estimators, sparsities, speed)
            if all(choice[:3]) and not shown.snapshot:
                view = sweeps.known(session, settings, choice)
                charts += [removed_chart(view)] if view.points else []
                charts += [speed_chart(view)] if any(point.prefill for point in view.points) else []
            words = {
                "The same from a command line": exports.command_lines(session, settings, prompt),
                "Open the sliced model again": exports.snippet(settings, prompt),
            }
            name = exports.checkpoint_name(settings)
            page = Report(name, settings._asdict(), shown, session.perplexities(settings), charts, words)
            text = html(page, PLOTLY.read_text(encoding="utf-8"))
            return str(outbox.put(f"{name}.html", lambda path: path.write_text(text, encoding="utf-8")))

    seen = {
        "fn": flat(look),
        "inputs": [*controls.settings, page.prompt, page.tab],
        "outputs": [panel.about, panel.snippet, panel.command],
        **CHEAP,
        **PRIVATE,
    }
    gr.on([*page.let_go, controls.iterative.input, controls.model.change], **seen, trigger_mode="always_last")
    for end in (page.opened["export"], *page.prepared):
        end.then(**seen)

    with_view = [*controls.settings, controls.layer, page.prompt, *choice]
    zipped = [page.status, panel.progress, panel.checkpoint_file]
    ends = {
        panel.checkpoint_file: panel.checkpoint.click(
            flat(checkpoint), controls.settings, zipped, api_name="checkpoint", **HEAVY
        ),
        panel.plan_file: panel.plan.click(flat(plan), controls.settings, panel.plan_file, api_name="plan", **CHEAP),
        panel.report_file: panel.report.click(flat(report), with_view, panel.report_file, api_name="report", **CHEAP),
    }
    for file, end in ends.items():
        end.success(None, file, None, js=SAVE, **CHEAP)


def _copied(template: str, elem_id: str) -> gr.HTML:
    """Words and a button that copies them (`assets/copy.js`)."""
    script = (ASSETS / "copy.js").read_text(encoding="utf-8")
    return gr.HTML(html_template=template, js_on_load=script, elem_id=elem_id, apply_default_css=False)


def _small(text: str) -> None:
    gr.HTML(f'<p class="isx-quiet">{text}</p>', apply_default_css=False)
