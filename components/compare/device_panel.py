"""On the Compare tab: the choice to run both models in the user's browser instead of on the server.

The browser does the work (`assets/device/`). The server tells which files a setting needs, and writes them when asked.
"""

import json
import time
from functools import partial
from typing import Any

import gradio as gr

from intraslice.core import checks

from ..device import wllama
from ..device.files import FILE_TYPES, FileType, ModelFile, ModelFiles, approximate_bytes, file_name
from ..device.routes import ENGINE, MODELS
from ..frame.context import HEAVY, Context, every
from ..gradio_compat.browser.on_latest import on_latest
from ..i18n.language import lazy_gettext, translate
from ..jobs.job import Job
from ..state.request import DENSE, Request
from ..state.session import Session
from ..state.settings import CONTROLS
from ..ui.handlers import Updates, status_line
from ..ui.scripts import on_load

SERVER, DEVICE = "server", "device"
Written = list[ModelFile] | None  # None where nothing is asked for


class DevicePanel:
    """The two choices, the device's view, the hidden button that asks for the files, and the files."""

    def __init__(self) -> None:
        self.files = ModelFiles()
        places = [(lazy_gettext("This server"), SERVER), (lazy_gettext("This device"), DEVICE)]
        self.run_on = gr.Radio(places, value=SERVER, label=lazy_gettext("Run on"), elem_id="run-on")
        types = [
            (lazy_gettext("q8_0 (8-bit weights)"), "q8_0"),
            (lazy_gettext("f16 (16-bit weights: more exact, twice the download)"), "f16"),
        ]
        self.file_type = gr.Radio(types, value="q8_0", label=lazy_gettext("Model files"), elem_id="device-type")
        self.view = gr.HTML(
            elem_id="device", html_template="<div></div>", js_on_load=on_load("device/compare"), apply_default_css=False
        )
        self.prepare = gr.Button("prepare", visible="hidden", elem_id="device-prepare")


def connect(panel: DevicePanel, context: Context) -> None:
    """Attach the handlers. The browser is told of a setting's files while the user runs the models on their device."""
    session, view = context.session, {"view": panel.view}
    chosen: dict[str, Any] = {"file_type": panel.file_type}
    tell = context.call(describe_if_chosen, session, outputs=view, refuse=_problem, run_on=panel.run_on, **chosen)
    calibrating = (context.controls.settings[name] for name, control in CONTROLS.items() if control.calibrates)
    signals = (panel.run_on, panel.file_type, context.prepared, context.measured, context.released, *calibrating)
    on_latest([*context.on_commit, *(signal.change for signal in signals)], **tell)
    answer = {"outputs": {"status": context.status} | view, "queue": HEAVY, "api_name": "device_files"} | chosen
    answer["refuse"] = lambda problem: {"view": _problem(problem, is_answer=True)}
    every([panel.prepare.click], **context.call(prepare, session, panel.files, **answer))


def describe_if_chosen(session: Session, request: Request, run_on: str, file_type: FileType, client: str) -> Any:
    """The description of the files a setting needs (JSON), if the user runs the models on their device."""
    return describe(session, request, file_type) if run_on == DEVICE else gr.skip()


def prepare(session: Session, model_files: ModelFiles, request: Request, file_type: FileType, client: str) -> Updates:
    """Write the GGUF files of a setting, dense and sliced, for a browser to run; slices first if necessary.

    `file_type` is q8_0 or f16. Yields a status (HTML), then the files as JSON: addresses below the page's own, sizes in
    bytes, or a `problem`.
    """
    written: list[ModelFile] = []

    def work(job: Job) -> None:
        written.extend(model_files.prepare(job, session, request, file_type))

    problem = lazy_gettext("The settings changed while the models were being prepared. Try again.")
    for event in session.jobs.run(client, "device", work, ready=partial(session.ready, request), request=request):
        if event.kind == "error":
            problem = event.text
        yield {"status": status_line(event)}
    if not (event.superseded and session.jobs.is_running(client, "device", request=request)):  # which will answer
        yield {"view": describe(session, request, file_type, written, "" if written else translate(str(problem)))}


def describe(
    session: Session, request: Request, file_type: FileType = "q8_0", written: Written = None, problem: str = ""
) -> str:
    """A setting's files, or its `problem`, as JSON. Sizes are estimates until files are written, 0 without a plan."""
    try:
        checks.one_of("Model files", file_type, FILE_TYPES)
        plan = session.plan(request)
    except ValueError as error:
        return _problem(error, is_answer=written is not None)
    parameters = {"dense": plan.parameters_dense if plan else 0}
    if request.slicing.sparsity:
        parameters["sliced"] = plan.parameters_sliced if plan else 0
    sizes = {file.path.name: file.size for file in written or ()}
    # The digest stays the same when the model is loaded, unlike the addresses.
    files: dict[str, Any] = {"digest": str(hash((file_type, request.slice_key("intraslice"))))}
    for key, count in parameters.items():
        name = file_name(request, DENSE if key == "dense" else "intraslice", file_type)
        files[key] = {"url": MODELS + name, "bytes": sizes.get(name, approximate_bytes(count, file_type))}
    return _json(request.settings.sparsity, files, written is not None, problem)


def _problem(problem: ValueError, is_answer: bool = False) -> str:
    return _json(0, {"dense": {"url": MODELS, "bytes": 0}}, is_answer, translate(str(problem)))


def _json(sparsity: float, files: dict[str, Any], is_answer: bool, problem: str = "") -> str:
    # The browser hears of no value that is equal to the last, hence the moment.
    about = {"engine": ENGINE, "about": wllama.ABOUT, "problem": problem, "moment": time.time()}
    return json.dumps(about | {"sparsity": sparsity, "isAnswer": is_answer} | files)
