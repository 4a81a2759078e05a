"""The Export tab: the sliced model, its plan, a report, and the commands and the link that reproduce this view."""

import json
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, Literal

import gradio as gr

from ..frame.context import HEAVY, Context, in_browser
from ..gradio_compat.signatures import Handler, partial_handler
from ..i18n.language import LazyString, gettext, language, lazy_gettext, number, translate, use_language
from ..jobs.job import Job
from ..jobs.status import Status
from ..ratios.charts import importance_chart, ratio_chart
from ..state.request import Request
from ..state.session import NOT_CALIBRATED, Session
from ..sweep.charts import measured_charts
from ..sweep.measure import cached_view
from ..sweep.views import SweepChoice
from ..ui import formatting
from ..ui.downloads import SAVE, Downloads
from ..ui.explainers import heading, note
from ..ui.handlers import LiveOutput, Updates, status_line
from ..ui.scripts import on_load
from . import files, pages
from .measure import Publisher
from .views import Choice

DOWNLOADS = {  # a button's label, and a note
    "checkpoint": (
        lazy_gettext("Sliced model (.zip)"),
        lazy_gettext("Weights (safetensors), configuration and tokenizer. Loads without the dense model."),
    ),
    "gguf": (
        lazy_gettext("For llama.cpp (.gguf)"),
        lazy_gettext(
            "One file, with the tokenizer. Free shapes are padded with zeros; Runtime shapes need no padding."
        ),
    ),
    "plan": (
        lazy_gettext("Plan (.json)"),
        lazy_gettext(
            "What each layer keeps, the importance thresholds behind it, and the calibration and evaluation protocol."
        ),
    ),
    "report": (
        lazy_gettext("Report (.html)"),
        lazy_gettext(
            "The ratio, importance and sweep charts of this setting, with tables and settings, as one page that opens "
            "offline."
        ),
    ),
    "page": (
        lazy_gettext("Static page (.html)"),
        lazy_gettext(
            "For slides and blogs: one file with a slider from 0 to 60% over precomputed results. Measuring takes "
            "about ten minutes."
        ),
    ),
}
COMMAND_LINE, RELOAD = lazy_gettext("The same from a command line"), lazy_gettext("Load the sliced model")
LINK = lazy_gettext("Link to this view")
FIELD = '<input type="text" readonly aria-label="{label}">'
BLOCK = '<pre tabindex="0" role="region" aria-label="{label}"></pre>'
CODE = {  # by name, as in the answers of `preview`: a heading, a note, and a label of the code
    "snippet": (
        RELOAD,
        lazy_gettext("Unpack the zip, then run this in a Python environment with intraslice installed:"),
        RELOAD,
    ),
    "command": (
        COMMAND_LINE,
        lazy_gettext(
            "Three commands: they compute the perplexity shown on this page, write the folder that is in the zip, and "
            "generate a greedy answer of 64 tokens."
        ),
        COMMAND_LINE,
    ),
    "embed": (
        lazy_gettext("Embed the static page in another page"),
        lazy_gettext(
            "Save the file in the folder of that page, and insert this line where the static page should appear:"
        ),
        lazy_gettext("The line that embeds the page"),
    ),
}


class ExportPanel:
    """The downloads, the reload snippet, the command lines, the link: created inside a `gr.Tab`."""

    def __init__(self, session: Session, first: Request) -> None:
        about = gr.HTML(elem_id="export-about", apply_default_css=False)
        self.buttons = {}
        with gr.Row(elem_id="export-buttons"):
            for name, (label, text) in DOWNLOADS.items():
                with gr.Column(min_width=220):
                    variant: Literal["primary", "secondary"] = "primary" if name == "checkpoint" else "secondary"
                    self.buttons[name] = gr.Button(label, variant=variant, elem_id=f"export-{name}")
                    if name == "gguf":
                        label, types = lazy_gettext("GGUF type"), files.GGUF_CHOICES
                        self.gguf_type = gr.Radio(types, value="f16", label=label, elem_id="export-gguf-type")
                    note(text)
        # Hidden: they pass the written file to the browser.
        self.files = {name: gr.DownloadButton(visible="hidden") for name in DOWNLOADS}
        self.progress = gr.HTML(elem_id="export-progress", apply_default_css=False)
        heading(LINK)
        _copyable(FIELD, LINK, lazy_gettext("Copy the link"), "export-link")
        self.shown = {"about": about}
        for name, (title, text, label) in CODE.items():
            heading(title)
            note(text)
            self.shown[name] = _copyable(BLOCK, label, lazy_gettext("Copy: {what}", what=label), f"export-{name}")


def preview(session: Session, request: Request, layer: int, prompt: str, client: str) -> dict[str, str]:
    """A description of the files, the snippet and the command lines, for the current settings."""
    try:
        plan = session.plan(request)
        command = files.command_lines(session, request, prompt)
    except ValueError as problem:
        return {"about": formatting.problem(problem)}
    shown = {"about": formatting.export(plan), "snippet": files.snippet(request, prompt), "command": command}
    return shown | {"embed": pages.embed(files.model_label(request.calibration.model))}


def checkpoint(session: Session, downloads: Downloads, request: Request, client: str) -> Updates:
    """The sliced model as a zip: safetensors, JSON and tokenizer; slices first if necessary.

    Yields two status lines (HTML), then the file.
    """
    write = partial(files.write_checkpoint, session=session, request=request, downloads=downloads)
    yield from _written(session, request, "checkpoint", write, client)


def gguf(session: Session, downloads: Downloads, request: Request, gguf_type: str, client: str) -> Updates:
    """The sliced model as one file for llama.cpp; slices first if necessary. `gguf_type` is f16, q8_0, q5_0 or q4_0.

    Yields two status lines (HTML), then the file.
    """
    write = partial(files.write_gguf_file, session=session, request=request, downloads=downloads, gguf_type=gguf_type)
    yield from _written(session, request, "gguf", write, client)


def published(session: Session, downloads: Downloads, publisher: Publisher, request: Request, client: str) -> Updates:
    """All steps from 0 to 60 % as one HTML file that needs no server: measures the missing ones, which takes minutes.

    Yields two status lines (HTML), then the file.
    """
    code = language()  # the client's language, which the thread of the job does not know

    def write(job: Job) -> files.Export:
        content = publisher.publish(job, request, Choice())
        job.emit(Status(lazy_gettext("Writing the page")))
        with job.waiting(), use_language(code):
            return files.Export(Path(downloads.put_text(f"{content.name}.html", pages.page(content))))

    yield from _written(session, request, "page", write, client)


def _written(
    session: Session, request: Request, kind: str, write: Callable[[Job], files.Export], client: str
) -> Updates:
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
    record = files.plan_record(session, request)
    text = json.dumps(record | {"asked": record["requested"]}, indent=1)  # as clients know it
    return downloads.put_text(f"{files.checkpoint_name(request)}-plan.json", text)


def report(
    session: Session, downloads: Downloads, request: Request, layer: int, prompt: str, choice: SweepChoice
) -> str:
    """The current view as one HTML file that opens offline: charts, tables, request, perplexities, command lines.

    `methods`, `estimators`, `sparsities`, `speed` and `quantise` select the measured points of the sweep that it shows.
    """
    view = session.plan(request)
    if view is None:
        raise ValueError(NOT_CALIBRATED)
    layer = min(layer, len(view.layers) - 1)
    charts = [ratio_chart(view, layer), importance_chart(session.importances(request, layer), layer)]
    if all((choice.methods, choice.estimators, choice.sparsities, choice.quantise)) and view.source.kind == "here":
        measured = measured_charts(cached_view(session, request, choice)).values()
        charts += [chart for chart in measured if chart and chart.rows]
    code = {
        translate(COMMAND_LINE): files.command_lines(session, request, prompt),
        translate(RELOAD): files.snippet(request, prompt),
    }
    settings = request.named  # the report must not disclose the folder of an upload
    settings = settings._replace(upload=settings.upload and Path(settings.upload).name)
    title = files.checkpoint_name(request)
    text = pages.report(title, settings._asdict(), view, session.perplexities(request), charts, code)
    return downloads.put_text(f"{title}.html", text)


def connect(panel: ExportPanel, context: Context) -> None:
    """Attach the tab's handlers. The report shows the points selected on the Sweep tab."""
    session, call, downloads = context.session, context.call, context.downloads
    live_output = LiveOutput("export", partial_handler(preview, session), panel.shown)
    context.subscribe(live_output, [*context.on_commit, context.controls.settings["model"].change])

    spectra, shifts, compare, sweep = (context.panels[tab] for tab in ("spectra", "activations", "compare", "sweep"))
    publisher = Publisher(spectra.views, shifts.views, compare.facts.cache)

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


def _copyable(field: str, label: str, copy: str, elem_id: str) -> gr.HTML:
    """A component whose field (HTML with a place for its label) has a button that copies it (`assets/copy.js`)."""

    def template() -> str:
        button = f'<button type="button" aria-label="{translate(copy)}">{gettext("Copy")}</button>'
        return f'<div class="isx-copy">{field.format(label=translate(label))}{button}</div>'

    options: dict[str, Any] = {"js_on_load": on_load("copy"), "elem_id": elem_id, "apply_default_css": False}
    return gr.HTML(html_template=LazyString(template), **options)
