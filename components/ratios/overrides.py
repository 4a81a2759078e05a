"""Manual ratios on the Ratios tab: a table in which locked ratios are fixed and the others adapt; locked units."""

from collections.abc import Callable
from typing import Any

import gradio as gr

from ..frame.context import HEAVY, Context, every, in_browser
from ..i18n.language import LazyString, gettext, lazy_gettext
from ..state.request import Request
from ..state.session import Session
from ..ui import formatting
from ..ui.downloads import SAVE, Downloads
from ..ui.labels import MODULES
from ..ui.scripts import on_load
from . import ratio_files


def _template() -> str:
    instructions = gettext(
        "Percentage removed. A ratio that you type or lock is fixed; the others adapt, so that the total stays "
        "the same. You can also save the ratios as a file, edit it, and load it again: it replaces the locked "
        "ratios."
    )
    examples = {"head": "<code>3 attention head 5 keep</code>", "neurons": "<code>7 mlp neurons 400</code>"}
    unit = gettext("Lock a head or the number of neurons, such as {head} or {neurons}", **examples)
    lock, modules = gettext("Lock"), MODULES
    names = (gettext("Layer"), modules["attention"], lock, modules["mlp"], lock)
    head = "".join(f'<th scope="col">{name}</th>' for name in names)
    return f"""
<details class="isx-fold isx-overrides">
  <summary>{gettext("Lock ratios manually")}<span class="isx-count"></span></summary>
  <p class="isx-quiet">{instructions}</p>
  <div class="isx-scroll" tabindex="0" role="region" aria-label="{gettext("Manual ratios")}">
    <table><thead><tr>{head}</tr></thead><tbody></tbody></table></div>
  <ul class="isx-units"></ul>
  <label class="isx-quiet">{unit} <input class="isx-unit" size="24"></label>
  <button type="button" class="isx-unlock">{gettext("Unlock all")}</button>
</details>
"""


class OverridesPanel:
    """The table, whose value is the locks as text; an error message; buttons for files. Created in the Ratios tab."""

    def __init__(self) -> None:
        template, on = LazyString(_template), on_load("overrides")
        self.table = gr.HTML("", html_template=template, js_on_load=on, elem_id="overrides", apply_default_css=False)
        self.problem = gr.HTML(elem_id="overrides-problem", apply_default_css=False)
        small: dict[str, Any] = {"size": "sm", "scale": 0, "min_width": 190}
        with gr.Row(equal_height=True, elem_id="ratio-files"):
            label = lazy_gettext("Load ratios (.csv, .json)")
            self.upload = gr.UploadButton(label, file_types=[".csv", ".json"], **small)
            self.save = gr.Button(lazy_gettext("Save these ratios (.csv)"), elem_id="ratios-save", **small)
        self.file = gr.DownloadButton(visible="hidden")


def edit(session: Session, request: Request, event: gr.EventData) -> dict[str, str]:
    """Apply the locks of the table; if they are impossible, show why and change nothing."""
    return _locked(session, lambda: request.with_settings(locked=event.locked))


def load(session: Session, request: Request, ratios_file: str) -> dict[str, str]:
    """Lock the ratios of a file, as `locked_ratios` reads it; if they are impossible, show why and change nothing."""
    return _locked(session, lambda: ratio_files.with_ratios(request.with_settings(locked=""), ratios_file))


def save(session: Session, downloads: Downloads, request: Request) -> str:
    """The current plan's ratios as a CSV file, which `load` and the command line's `--ratios` can read."""
    return downloads.put_text("ratios.csv", ratio_files.planned_ratios(session, request))


def connect(panel: OverridesPanel, context: Context) -> None:
    """Attach the handlers: an edit of the table changes the setting, and a change of the setting updates the table."""
    session, call, locked = context.session, context.call, context.controls.settings["locked"]
    edited = {"locked": locked, "table": panel.table, "problem": panel.problem}
    answered = every([panel.table.select], **call(edit, session, outputs=edited))
    answered.then(**in_browser("() => (dispatchEvent(new Event('isx-locks')), [])"))
    locked.change(**in_browser("(locked) => [locked, '']", locked, [panel.table, panel.problem]))
    every(context.on_commit, **in_browser("() => ''", None, panel.problem))  # what was refused at another setting
    panel.upload.upload(**call(load, session, outputs=edited, ratios_file=panel.upload))
    file = {"file": panel.file}
    saved = panel.save.click(
        **call(save, session, context.downloads, outputs=file, queue=HEAVY, api_name="save_ratios")
    )
    saved.success(**in_browser(SAVE, panel.file))


def _locked(session: Session, locked: Callable[[], Request]) -> dict[str, str]:
    try:
        request = locked()
        session.plan(request)
    except ValueError as problem:
        return {"problem": formatting.problem(problem)}
    return {"locked": request.settings.locked, "table": request.settings.locked, "problem": ""}
