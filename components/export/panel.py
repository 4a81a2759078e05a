"""The Export tab: the sliced model, its plan, a report, and the commands and the link that reproduce this view."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any, NamedTuple

import gradio as gr

from ..frame.context import HEAVY, Context, in_browser
from ..gradio_compat.browser.on_latest import on_latest
from ..gradio_compat.signatures import Handler
from ..i18n.language import LazyString, language, lazy_gettext, number, translate, use_language
from ..jobs.job import Job
from ..jobs.status import Status
from ..state.request import Request
from ..state.session import Session
from ..sweep.views import SweepChoice
from ..ui import formatting
from ..ui.chart_bridge import PLOTLY
from ..ui.downloads import SAVE, Downloads
from ..ui.handlers import status_line
from . import files
from .parts import code_block, copyable, heading, link_field, note
from .published.html import embed, page
from .published.measure import Publisher
from .published.views import Choice
from .report import html

Write = Callable[[Job], files.Export]  # the work of a job


class ExportPanel(NamedTuple):
    """The tab's components."""

    shown: dict[str, gr.HTML]  # by name, as in the answers of `preview`
    buttons: dict[str, gr.Button]  # by the names of the files
    files: dict[str, gr.DownloadButton]  # hidden: they pass a written file to the browser
    gguf_type: gr.Radio
    progress: gr.HTML


def preview(session: Session, request: Request, prompt: str) -> dict[str, str]:
    """A description of the files, the snippet and the command lines, for the current settings."""
    try:
        plan = session.plan(request)
        command = files.command_lines(session, request, prompt)
    except ValueError as problem:
        return {"about": formatting.problem(problem)}
    shown = {"about": formatting.export(plan), "snippet": files.snippet(request, prompt), "command": command}
    return shown | {"embed": embed(files.model_label(request.calibration.model))}


def checkpoint(session: Session, downloads: Downloads, request: Request, client: str) -> Iterator[dict[str, Any]]:
    """The sliced model as a zip: safetensors, JSON and tokenizer; slices first if necessary.

    Yields two status lines (HTML), then the file.
    """
    write = partial(files.write_checkpoint, session=session, request=request, downloads=downloads)
    yield from _written(session, request, "checkpoint", write, client)


def gguf(
    session: Session, downloads: Downloads, request: Request, gguf_type: str, client: str
) -> Iterator[dict[str, Any]]:
    """The sliced model as one file for llama.cpp; slices first if necessary. `gguf_type` is f16, q8_0, q5_0 or q4_0.

    Yields two status lines (HTML), then the file.
    """
    write = partial(files.write_gguf_file, session=session, request=request, downloads=downloads, gguf_type=gguf_type)
    yield from _written(session, request, "gguf", write, client)


def published(
    session: Session, downloads: Downloads, publisher: Publisher, request: Request, client: str
) -> Iterator[dict[str, Any]]:
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


def _written(session: Session, request: Request, kind: str, write: Write, client: str) -> Iterator[dict[str, Any]]:
    written: list[files.Export] = []

    def ready() -> Status:
        if not written:  # it was stopped
            return session.ready(request)
        path, remark = written[0]
        size = path.stat().st_size / 1e6
        megabytes = LazyString(lambda: number(size, ".0f" if size > 10 else ".1f"))
        done = lazy_gettext("{name}, {size} MB", name=path.name, size=megabytes)
        return Status(LazyString(lambda: f"{translate(done)}{remark and ', '}{translate(remark)}"), "ready")

    yield {"file": None}  # clear the previous file
    for event in session.jobs.run(client, kind, lambda job: written.append(write(job)), ready=ready):
        file = {"file": str(written[0].path)} if written else {}
        yield {"status": status_line(event), "progress": formatting.status(event)} | file


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
    buttons = {"checkpoint": checkpoint, "gguf": gguf, "plan": plan, "report": report, "page": static_page}
    hidden = {name: gr.DownloadButton(visible="hidden") for name in buttons}
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
        shown={"about": about, "snippet": snippet, "command": command, "embed": embed_line},
        buttons=buttons,
        files=hidden,
        gguf_type=gguf_type,
        progress=progress,
    )


def connect(panel: ExportPanel, context: Context) -> None:
    """Attach the tab's handlers. The report shows the points selected on the Sweep tab."""
    session, call, downloads = context.session, context.call, context.downloads
    events = [*context.on_commit, context.controls.settings["model"].change]
    events += [context.opened["export"].change, context.prepared.change]
    on_latest(events, **call(preview, session, outputs=panel.shown, tab="export"))

    spectra, shifts, columns, sweep = (context.panels[tab] for tab in ("spectra", "activations", "compare", "sweep"))
    publisher = Publisher(spectra.views, shifts.views, columns.columns)

    def download(
        name: str, handler: Handler, *bound: Any, api_name: str = "", shown: Any = None, **options: Any
    ) -> None:
        outputs = {**(shown or {}), "file": panel.files[name]}
        listener = call(handler, session, downloads, *bound, outputs=outputs, api_name=api_name or name, **options)
        panel.buttons[name].click(**listener).success(**in_browser(SAVE, panel.files[name]))

    job: dict[str, Any] = {"shown": {"status": context.status, "progress": panel.progress}, "queue": HEAVY}
    download("checkpoint", checkpoint, **job)
    download("gguf", gguf, gguf_type=panel.gguf_type, **job)
    download("page", published, publisher, api_name="publish", **job)
    download("plan", plan)
    download("report", report, **sweep.choice)
