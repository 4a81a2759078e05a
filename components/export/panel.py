"""The Export tab: the sliced model, its plan, a report, and the commands and the link that reproduce this view."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any, NamedTuple

import gradio as gr

from ..frame.context import CHEAP, HEAVY, PRIVATE, Context
from ..gradio_compat.browser.on_latest import on_latest
from ..i18n.language import LazyString, language, lazy_gettext, number, translate, use_language
from ..jobs.job import Job
from ..jobs.status import Status
from ..state.request import Request
from ..state.session import Session
from ..sweep.views import SweepChoice
from ..ui import formatting
from ..ui.chart_bridge import PLOTLY
from ..ui.downloads import SAVE, Downloads
from ..ui.handlers import only_if_active, spread_settings, status_line, unchanged
from . import files
from .measure import Publisher
from .pages import embed, page
from .parts import code_block, copyable, heading, link_field, note
from .report import html
from .views import Choice

Write = Callable[[Job], files.Export]  # the work of a job


class Shown(NamedTuple):
    """A description of the files (HTML), and the code that reproduces the view."""

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
    """Hidden download buttons that pass the written file to the browser."""

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
    gguf_type: gr.Radio
    progress: gr.HTML


def preview(session: Session, request: Request, prompt: str) -> Shown:
    """A description of the files, the snippet and the command lines, for the current settings."""
    try:
        plan = session.plan(request)
        command = files.command_lines(session, request, prompt)
    except ValueError as problem:
        return unchanged(Shown)._replace(about=formatting.problem(problem))
    embed_line = embed(files.model_label(request.calibration.model))
    return Shown(formatting.export(plan), files.snippet(request, prompt), command, embed_line)


def checkpoint(session: Session, downloads: Downloads, request: Request, client: str) -> Iterator[Written]:
    """The sliced model as a zip: safetensors, JSON and tokenizer; slices first if necessary.

    Yields two status lines (HTML), then the file.
    """
    write = partial(files.write_checkpoint, session=session, request=request, downloads=downloads)
    yield from _written(session, request, "checkpoint", write, client)


def gguf(session: Session, downloads: Downloads, request: Request, gguf_type: str, client: str) -> Iterator[Written]:
    """The sliced model as one file for llama.cpp; slices first if necessary. `gguf_type` is f16, q8_0, q5_0 or q4_0.

    Yields two status lines (HTML), then the file.
    """
    write = partial(files.write_gguf_file, session=session, request=request, downloads=downloads, gguf_type=gguf_type)
    yield from _written(session, request, "gguf", write, client)


def published(
    session: Session, downloads: Downloads, publisher: Publisher, request: Request, client: str
) -> Iterator[Written]:
    """All steps from 0 to 60 % as one HTML file that needs no server: measures the missing ones, which takes minutes.

    Yields two status lines (HTML), then the file.
    """
    code = language()  # the client's language, which the thread of the job does not know

    def write(job: Job) -> files.Export:
        published_page = publisher.publish(job, request, Choice())
        job.emit(Status(lazy_gettext("Writing the page")))
        with job.waiting(), use_language(code):
            text = page(published_page)
        return files.Export(
            downloads.put(f"{published_page.name}.html", lambda path: path.write_text(text, encoding="utf-8"))
        )

    yield from _written(session, request, "page", write, client)


def _written(session: Session, request: Request, kind: str, write: Write, client: str) -> Iterator[Written]:
    written: list[files.Export] = []

    def ready() -> Status:
        if not written:  # it was stopped
            return session.ready(request)
        path, remark = written[0]
        size = path.stat().st_size / 1e6
        megabytes = LazyString(lambda: number(size, ".0f" if size > 10 else ".1f"))
        done = lazy_gettext("{name}, {size} MB", name=path.name, size=megabytes)
        return Status(LazyString(lambda: f"{translate(done)}{remark and ', '}{translate(remark)}"), "ready")

    yield unchanged(Written)._replace(file=None)  # clear the previous file
    for event in session.jobs.run(client, kind, lambda job: written.append(write(job)), ready=ready):
        yield Written(status_line(event), formatting.status(event), str(written[0].path) if written else gr.skip())


def plan(session: Session, downloads: Downloads, request: Request) -> str:
    """What every layer keeps and why, with sizes and protocol, as a JSON file."""
    session.slice_plan(request)  # raises an error before any file is written
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
    quantise: list[str],
) -> str:
    """The current view as one HTML file that opens offline: charts, tables, request, perplexities, command lines.

    `methods`, `estimators`, `sparsities`, `speed` and `quantise` select the measured points of the sweep that it shows.
    """
    choice = SweepChoice(methods, estimators, sparsities, speed, quantise)
    content = files.report_of(session, request, layer, prompt, choice)
    text = html(content, PLOTLY.read_text(encoding="utf-8"))
    return str(downloads.put(f"{content.title}.html", lambda path: path.write_text(text, encoding="utf-8")))


def build(session: Session, first: Request) -> ExportPanel:
    """The downloads, the reload snippet, the command lines, the link. Called inside a `gr.Tab`."""
    about = gr.HTML(elem_id="export-about", apply_default_css=False)
    with gr.Row(elem_id="export-buttons"):
        with gr.Column(min_width=220):
            checkpoint = gr.Button(lazy_gettext("Sliced model (.zip)"), variant="primary", elem_id="export-checkpoint")
            note(lazy_gettext("Weights (safetensors), configuration and tokenizer. Loads without the dense model."))
        with gr.Column(min_width=220):
            gguf = gr.Button(lazy_gettext("For llama.cpp (.gguf)"), elem_id="export-gguf")
            gguf_type = gr.Radio(
                files.GGUF_CHOICES, value="f16", label=lazy_gettext("GGUF type"), elem_id="export-gguf-type"
            )
            note(
                lazy_gettext(
                    "One file, with the tokenizer. Free shapes are padded with zeros; Runtime shapes need no padding."
                )
            )
        with gr.Column(min_width=220):
            plan = gr.Button(lazy_gettext("Plan (.json)"), elem_id="export-plan")
            note(
                lazy_gettext(
                    "What each layer keeps, the importance thresholds behind it, and the calibration and evaluation "
                    "protocol."
                )
            )
        with gr.Column(min_width=220):
            report = gr.Button(lazy_gettext("Report (.html)"), elem_id="export-report")
            note(
                lazy_gettext(
                    "The ratio, importance and sweep charts of this setting, with tables and settings, as one page "
                    "that opens offline."
                )
            )
        with gr.Column(min_width=220):
            static_page = gr.Button(lazy_gettext("Static page (.html)"), elem_id="export-page")
            note(
                lazy_gettext(
                    "For slides and blogs: one file with a slider from 0 to 60% over precomputed results. "
                    "Measuring takes about ten minutes."
                )
            )
    hidden = Files(*(gr.DownloadButton(visible="hidden") for _ in Files._fields))
    progress = gr.HTML(elem_id="export-progress", apply_default_css=False)
    heading(lazy_gettext("Link to this view"))
    copyable(link_field, "export-link")
    reload, command_line = lazy_gettext("Load the sliced model"), lazy_gettext("The same from a command line")
    heading(reload)
    note(lazy_gettext("Unpack the zip, then run this in a Python environment with intraslice installed:"))
    snippet = copyable(partial(code_block, reload), "export-snippet")
    heading(command_line)
    note(
        lazy_gettext(
            "Three commands: they compute the perplexity shown on this page, write the folder that is in the zip, and "
            "generate the greedy answer shown here."
        )
    )
    command = copyable(partial(code_block, command_line), "export-command")
    heading(lazy_gettext("Embed the static page in another page"))
    note(
        lazy_gettext(
            "Save the file in the folder of that page, and insert this line where the static page should appear:"
        )
    )
    embed_line = copyable(partial(code_block, lazy_gettext("The line that embeds the page")), "export-embed")
    return ExportPanel(
        shown=Shown(about, snippet, command, embed_line),
        buttons=Buttons(checkpoint, gguf, plan, report, static_page),
        files=hidden,
        gguf_type=gguf_type,
        progress=progress,
    )


def connect(panel: ExportPanel, context: Context) -> None:
    """Attach the tab's handlers. The report shows the points selected on the Sweep tab."""
    session, controls, downloads = context.session, context.controls, context.downloads
    settings, buttons, hidden = controls.settings, panel.buttons, panel.files
    preview_listener = {
        "fn": only_if_active("export", unchanged(Shown), preview, session),
        "inputs": [*settings, context.prompt, context.tab],
        "outputs": [*panel.shown],
        **CHEAP,
        **PRIVATE,
    }
    on_latest([*context.on_commit, controls.iterative.input, controls.model.change], **preview_listener)
    for end in (context.opened["export"], *context.prepared):
        end.then(**preview_listener)

    checkpoint_written = [*Written(context.status, panel.progress, hidden.checkpoint)]
    gguf_written = [*Written(context.status, panel.progress, hidden.gguf)]
    page_written = [*Written(context.status, panel.progress, hidden.page)]
    spectra, shifts, columns = (context.panels[tab] for tab in ("spectra", "activations", "compare"))
    publisher = Publisher(spectra.views, shifts.views, columns.columns)
    report_inputs = [*settings, controls.layer, context.prompt, *context.panels["sweep"].choice]
    ends = {
        hidden.checkpoint: buttons.checkpoint.click(
            spread_settings(checkpoint, session, downloads),
            settings,
            checkpoint_written,
            api_name="checkpoint",
            **HEAVY,
        ),
        hidden.gguf: buttons.gguf.click(
            spread_settings(gguf, session, downloads),
            [*settings, panel.gguf_type],
            gguf_written,
            api_name="gguf",
            **HEAVY,
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
            spread_settings(report, session, downloads), report_inputs, hidden.report, api_name="report", **CHEAP
        ),
    }
    for file, end in ends.items():
        end.success(None, file, None, js=SAVE, **CHEAP)
