"""On the Compare tab: the choice to run both models in the user's browser instead of on the server.

The browser does the work (`assets/device/`). The server tells which files a setting needs, and writes them when asked.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from functools import partial
from typing import Any, NamedTuple

import gradio as gr

from ..assets import ASSETS
from ..device import wllama
from ..device.files import FileType, ModelFile, ModelFiles, approximate_bytes, file_name, require_type
from ..device.routes import ENGINE, MODELS
from ..frame.context import HEAVY, Context
from ..gradio_compat.browser.on_latest import on_latest
from ..i18n.language import lazy_gettext, translate
from ..jobs.job import Job
from ..state.request import DENSE, Request
from ..state.session import Session
from ..ui.handlers import status_line

SERVER, DEVICE = "server", "device"


class DevicePanel(NamedTuple):
    """The two choices, the device's view, the hidden button that asks for the files, and the files."""

    run_on: gr.Radio
    file_type: gr.Radio
    view: gr.HTML
    prepare: gr.Button
    files: ModelFiles


def build() -> DevicePanel:
    """The choices and the device's view. Called inside a `gr.Tab`."""
    run_on = gr.Radio(
        [(lazy_gettext("This server"), SERVER), (lazy_gettext("This device"), DEVICE)],
        value=SERVER,
        label=lazy_gettext("Run on"),
        elem_id="run-on",
    )
    file_type = gr.Radio(
        [
            (lazy_gettext("q8_0 (8-bit weights)"), "q8_0"),
            (lazy_gettext("f16 (16-bit weights: more exact, twice the download)"), "f16"),
        ],
        value="q8_0",
        label=lazy_gettext("Model files"),
        elem_id="device-type",
    )
    script = (ASSETS / "device" / "compare.js").read_text(encoding="utf-8")
    view = gr.HTML(elem_id="device", html_template="<div></div>", js_on_load=script, apply_default_css=False)
    prepare = gr.Button("prepare", visible="hidden", elem_id="device-prepare")
    return DevicePanel(run_on, file_type, view, prepare, ModelFiles())


def connect(panel: DevicePanel, context: Context) -> None:
    """Attach the handlers. The browser is told of a setting's files while the user runs the models on their device."""
    session, call = context.session, context.call
    inputs: dict[str, Any] = {"run_on": panel.run_on, "file_type": panel.file_type}
    signals = [*inputs.values(), context.prepared, context.measured, context.released]
    described = call(describe_if_chosen, session, outputs={"view": panel.view}, refuse=_problem, **inputs)
    on_latest([*context.on_commit, *(signal.change for signal in signals)], **described)
    outputs = {"status": context.status, "view": panel.view}
    options: dict[str, Any] = {"queue": HEAVY, "api_name": "device_files", "file_type": panel.file_type}
    panel.prepare.click(**call(prepare, session, panel.files, outputs=outputs, **options))


def describe_if_chosen(session: Session, request: Request, run_on: str, file_type: FileType, client: str) -> Any:
    """The description of the files a setting needs (JSON), if the user runs the models on their device."""
    return describe(session, request, file_type) if run_on == DEVICE else gr.skip()


def prepare(
    session: Session, model_files: ModelFiles, request: Request, file_type: FileType, client: str
) -> Iterator[dict[str, Any]]:
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
    yield {"view": describe(session, request, file_type, written) if written else _problem(problem, is_answer=True)}


def describe(
    session: Session, request: Request, file_type: FileType = "q8_0", written: list[ModelFile] | None = None
) -> str:
    """What the browser needs to know of a setting's files, as JSON. Sizes are estimates until the files are written.

    They are 0 for a model that is not calibrated. For a setting that is impossible it has the `problem`.
    """
    try:
        require_type(file_type)
        plan = session.plan(request)
    except ValueError as problem:
        return _problem(problem)
    parameters = (plan.parameters_dense, plan.parameters_sliced) if plan else (0, 0)
    methods = (DENSE, *(["intraslice"] if request.slicing.sparsity else []))
    sizes = {file.name: file.size for file in written or ()}
    described = {}
    for method, count in zip(methods, parameters, strict=False):
        name = file_name(request, method, file_type)
        size = sizes.get(name, approximate_bytes(count, file_type))
        described["dense" if method == DENSE else "sliced"] = {"url": MODELS + name, "bytes": size}
    return _json(sparsity=request.settings.sparsity, isAnswer=written is not None, **described)


def _problem(problem: ValueError | str, is_answer: bool = False) -> str:
    return _json(sparsity=0, problem=translate(str(problem)), isAnswer=is_answer, dense={"url": MODELS, "bytes": 0})


def _json(**values: Any) -> str:
    """The description, with what is the same for all settings."""
    about = f"{wllama.PACKAGE.rpartition('/')[2]} {wllama.VERSION} ({wllama.LICENCE})"
    # The browser hears of no value that is equal to the last, hence the moment.
    return json.dumps({"engine": ENGINE, "about": about, "problem": "", "moment": time.time()} | values)
