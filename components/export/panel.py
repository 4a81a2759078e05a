"""The Export tab: the sliced model, its plan, a report, and the words and the link that make this view again."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import gradio as gr

from components.export import files
from components.export.parts import copied, heading, link, note, words
from components.export.published.html import embed, page
from components.export.published.measure import Publisher
from components.export.published.views import Choice
from components.export.report import Report, html
from components.frame.context import CHEAP, HEAVY, PRIVATE, Context
from components.gradio_compat.browser.on_latest import on_latest
from components.i18n.language import LazyString, gettext, language, lazy_gettext, number, translate, use_language
from components.jobs.job import Job
from components.jobs.status import Status
from components.ratios.charts import importance_chart, ratio_chart
from components.state.request import Request
from components.state.session import NOT_CALIBRATED, Session
from components.sweep import measure as sweeps
from components.sweep.charts import removed_chart, speed_chart
from components.sweep.views import SweepChoice
from components.ui import formatting
from components.ui.chart_bridge import PLOTLY
from components.ui.downloads import SAVE, Downloads
from components.ui.handlers import only_if_active, spread_settings, unchanged


class Shown(NamedTuple):
    """What the buttons would give (HTML), and the words that make the view again."""

    about: Any
    snippet: Any
    command: Any
    embed: Any


class Buttons(NamedTuple):
    """The downloads."""

    checkpoint: gr.Button
    gguf: gr.Button
    plan: gr.Button
    report: gr.Button
    page: gr.Button


class Files(NamedTuple):
    """Hidden download buttons that hand what was asked for to the browser."""

    checkpoint: gr.DownloadButton
    gguf: gr.DownloadButton
    plan: gr.DownloadButton
    report: gr.DownloadButton
    page: gr.DownloadButton


class Written(NamedTuple):
    """Two status lines (HTML), and the file."""

    status: Any
    progress: Any
    file: Any


class ExportPanel(NamedTuple):
    """The tab's components."""

    shown: Shown
    buttons: Buttons
    files: Files
    progress: gr.HTML


def preview(session: Session, request: Request, prompt: str) -> Shown:
    """What the buttons would give, the snippet and the command lines, for the current settings."""
    try:
        plan = session.plan(request)
        command = files.command_lines(session, request, prompt)
    except ValueError as problem:
        return unchanged(Shown)._replace(about=formatting.problem(problem))
    line = embed(files.model_label(request.calibration.model))
    return Shown(formatting.export(plan), files.snippet(request, prompt), command, line)


def checkpoint(session: Session, downloads: Downloads, request: Request, client: str) -> Iterator[Written]:
    """The sliced model as a zip: safetensors, JSON and tokenizer; slices first where that is still to do.

    Yields two status lines (HTML), then the file.
    """
    write = partial(files.write_checkpoint, session=session, request=request, downloads=downloads)
    yield from _written(session, "checkpoint", write, client)


def gguf(session: Session, downloads: Downloads, request: Request, client: str) -> Iterator[Written]:
    """The sliced model as one file for llama.cpp, in float16; slices first where that is still to do.

    Yields two status lines (HTML), then the file.
    """
    write = partial(files.write_gguf_file, session=session, request=request, downloads=downloads)
    yield from _written(session, "gguf", write, client)


def published(
    session: Session, downloads: Downloads, publisher: Publisher, request: Request, client: str
) -> Iterator[Written]:
    """All of 0 to 60 % as one HTML file that needs no server: measures what is not measured yet, which takes minutes.

    Yields two status lines (HTML), then the file.
    """

    code = language()  # the visitor's: the work itself is done elsewhere

    def write(job: Job) -> files.Export:
        found = publisher.publish(job, request, Choice())
        job.emit(Status(lazy_gettext("Writing the page")))
        with job.waiting(), use_language(code):
            text = page(found)
        return files.Export(downloads.put(f"{found.name}.html", lambda path: path.write_text(text, encoding="utf-8")))

    yield from _written(session, "page", write, client)


def _written(session: Session, kind: str, write: Callable[[Job], files.Export], client: str) -> Iterator[Written]:
    written: list[Path] = []

    def work(job: Job) -> None:
        path, words = write(job)
        written.append(path)
        size = path.stat().st_size / 1e6
        done = lazy_gettext(
            "{name}, {size} MB", name=path.name, size=LazyString(lambda: number(size, ".0f" if size > 10 else ".1f"))
        )
        job.emit(Status(LazyString(lambda: f"{translate(done)}{words and ', '}{translate(words)}"), "ready"))

    yield unchanged(Written)._replace(file=None)  # the last one's file must not be given again
    for event in session.jobs.run(client, kind, work):
        line = formatting.status(event)
        yield Written(line, line, str(written[0]) if written else gr.skip())


def plan(session: Session, downloads: Downloads, request: Request) -> str:
    """What every layer keeps and why, with sizes and protocol, as a JSON file."""
    session.slice_plan(request)  # or an error says why there is no plan, before any file is written
    name = f"{files.checkpoint_name(request)}-plan.json"
    return str(downloads.put(name, lambda path: files.write_plan(session, request, path)))


def report(
    session: Session,
    downloads: Downloads,
    request: Request,
    layer: int,
    prompt: str,
    methods: list[str],
    estimators: list[str],
    sparsities: list[float],
    speed: bool,
) -> str:
    """The current view as one HTML file that opens offline: charts, tables, request, perplexities, command lines.

    `methods`, `estimators`, `sparsities` and `speed` choose the sweep that it shows, where one is measured.
    """
    choice = SweepChoice(methods, estimators, sparsities, speed)
    content = _report(session, request, layer, prompt, choice)
    text = html(content, PLOTLY.read_text(encoding="utf-8"))
    return str(downloads.put(f"{content.title}.html", lambda path: path.write_text(text, encoding="utf-8")))


def _report(session: Session, request: Request, layer: int, prompt: str, choice: SweepChoice) -> Report:
    view = session.plan(request)
    if view is None:
        raise ValueError(NOT_CALIBRATED)
    layer = min(layer, len(view.layers) - 1)
    charts = [ratio_chart(view, layer), importance_chart(session.importances(request, layer), layer)]
    if choice.methods and choice.estimators and choice.sparsities and not view.provisional:
        sweep = sweeps.known(session, request, choice)
        charts += [removed_chart(sweep)] if sweep.points else []
        charts += [speed_chart(sweep)] if any(point.prefill for point in sweep.points) else []
    words = {
        gettext("The same from a command line"): files.command_lines(session, request, prompt),
        gettext("Open the sliced model again"): files.snippet(request, prompt),
    }
    title = files.checkpoint_name(request)
    # Where an upload lies is nobody's business.
    settings = request.settings
    named = settings._replace(upload=settings.upload and Path(settings.upload).name)
    return Report(title, named._asdict(), view, session.perplexities(request), charts, words)


def build(session: Session, first: Request) -> ExportPanel:
    """The downloads, the reload snippet, the command lines, the link. Called inside a `gr.Tab`."""
    about = gr.HTML(elem_id="export-about", apply_default_css=False)
    with gr.Row(elem_id="export-buttons"):
        with gr.Column(min_width=220):
            checkpoint = gr.Button(lazy_gettext("Sliced model (.zip)"), variant="primary", elem_id="export-checkpoint")
            note(lazy_gettext("Weights as safetensors, JSON and tokenizer; loads without the dense model."))
        with gr.Column(min_width=220):
            gguf = gr.Button(lazy_gettext("For llama.cpp (.gguf)"), elem_id="export-gguf")
            note(
                lazy_gettext(
                    "One file with its tokenizer, in float16. Free shapes are padded with zeros; Runtime "
                    "shapes need no padding."
                )
            )
        with gr.Column(min_width=220):
            plan = gr.Button(lazy_gettext("Plan (.json)"), elem_id="export-plan")
            note(lazy_gettext("What each layer keeps, the importances behind it, and how it was measured."))
        with gr.Column(min_width=220):
            report = gr.Button(lazy_gettext("Report (.html)"), elem_id="export-report")
            note(lazy_gettext("This view's charts, tables and numbers as one page that opens offline."))
        with gr.Column(min_width=220):
            whole = gr.Button(lazy_gettext("Static page (.html)"), elem_id="export-page")
            note(
                lazy_gettext(
                    "For slides and blogs: one file with a live slider from 0 to 60 %. Measuring takes about "
                    "ten minutes."
                )
            )
    hidden = Files(*(gr.DownloadButton(visible="hidden") for _ in Files._fields))
    progress = gr.HTML(elem_id="export-progress", apply_default_css=False)
    heading(lazy_gettext("Link to this view"))
    copied(link, "export-link")
    again, command_line = lazy_gettext("Open it again"), lazy_gettext("The same from a command line")
    heading(again)
    note(lazy_gettext("Unpack the zip, and in a Python that has this library installed:"))
    snippet = copied(partial(words, again), "export-snippet")
    heading(command_line)
    note(lazy_gettext("This page's perplexity; the folder that the zip holds; this page's greedy answer."))
    command = copied(partial(words, command_line), "export-command")
    heading(lazy_gettext("Embed the static page in another page"))
    note(lazy_gettext("Put the file next to that page and this line where it should appear:"))
    line = copied(partial(words, lazy_gettext("The line that embeds the page")), "export-embed")
    return ExportPanel(
        shown=Shown(about, snippet, command, line),
        buttons=Buttons(checkpoint, gguf, plan, report, whole),
        files=hidden,
        progress=progress,
    )


def connect(panel: ExportPanel, context: Context) -> None:
    """Attach the tab's handlers. A report shows the sweep that the Sweep tab is set to."""
    session, controls, downloads = context.session, context.controls, context.downloads
    settings, buttons, hidden = controls.settings, panel.buttons, panel.files
    seen = {
        "fn": only_if_active("export", unchanged(Shown), preview, session),
        "inputs": [*settings, context.prompt, context.tab],
        "outputs": [*panel.shown],
        **CHEAP,
        **PRIVATE,
    }
    on_latest([*context.on_commit, controls.iterative.input, controls.model.change], **seen)
    for end in (context.opened["export"], *context.prepared):
        end.then(**seen)

    checkpoint_written = [*Written(context.status, panel.progress, hidden.checkpoint)]
    gguf_written = [*Written(context.status, panel.progress, hidden.gguf)]
    page_written = [*Written(context.status, panel.progress, hidden.page)]
    spectra, shifts, columns = (context.panels[tab] for tab in ("spectra", "activations", "compare"))
    publisher = Publisher(spectra.views, shifts.views, columns.columns)
    with_view = [*settings, controls.layer, context.prompt, *context.panels["sweep"].choice]
    ends = {
        hidden.checkpoint: buttons.checkpoint.click(
            spread_settings(checkpoint, session, downloads),
            settings,
            checkpoint_written,
            api_name="checkpoint",
            **HEAVY,
        ),
        hidden.gguf: buttons.gguf.click(
            spread_settings(gguf, session, downloads), settings, gguf_written, api_name="gguf", **HEAVY
        ),
        hidden.page: buttons.page.click(
            spread_settings(published, session, downloads, publisher),
            settings,
            page_written,
            api_name="publish",
            **HEAVY,
        ),
        hidden.plan: buttons.plan.click(
            spread_settings(plan, session, downloads), settings, hidden.plan, api_name="plan", **CHEAP
        ),
        hidden.report: buttons.report.click(
            spread_settings(report, session, downloads), with_view, hidden.report, api_name="report", **CHEAP
        ),
    }
    for file, end in ends.items():
        end.success(None, file, None, js=SAVE, **CHEAP)
