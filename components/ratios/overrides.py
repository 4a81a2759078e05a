"""Ratios by hand, on the Ratios tab: a table in which a locked ratio stays and the others make up for it."""

from __future__ import annotations

from typing import Any, NamedTuple

import gradio as gr

from components.assets import ASSETS
from components.frame.context import CHEAP, PRIVATE, Context
from components.gradio_compat.browser.on_latest import on_latest
from components.i18n.language import LazyString, gettext, lazy_gettext
from components.ratios import measure
from components.state.request import Request
from components.state.session import Session
from components.ui import formatting
from components.ui.downloads import SAVE, Downloads
from components.ui.handlers import spread_settings, unchanged
from components.ui.labels import MODULES


def _template() -> str:
    how = gettext(
        "Percentage removed. A ratio that you type or lock is fixed; the others adapt, so that the total stays "
        "the same. You can also save the ratios as a file, edit it, and load it again: it replaces the locked "
        "ratios."
    )
    lock, modules = gettext("Lock"), MODULES
    names = (gettext("Layer"), modules["attention"], lock, modules["mlp"], lock)
    head = "".join(f'<th scope="col">{name}</th>' for name in names)
    return f"""
<details class="isx-fold isx-overrides">
  <summary>{gettext("Set ratios manually")}<span class="isx-count"></span></summary>
  <p class="isx-quiet">{how}</p>
  <div class="isx-scroll" tabindex="0" role="region" aria-label="{gettext("Manual ratios")}">
    <table><thead><tr>{head}</tr></thead><tbody></tbody></table></div>
  <button type="button" class="isx-unlock">{gettext("Unlock all")}</button>
</details>
"""


class OverridesPanel(NamedTuple):
    """The table, whose value is the locks as text, what is wrong with them in words, and ratios as files."""

    table: gr.HTML
    problem: gr.HTML
    upload: gr.UploadButton
    save: gr.Button
    file: gr.DownloadButton


class Edited(NamedTuple):
    """What an edit of the table changes."""

    locked: Any
    problem: Any


def edit(session: Session, request: Request, event: gr.EventData) -> Edited:
    """Take the locks of the table where they can be met; explain where they cannot, and change nothing."""
    try:
        session.plan(request.with_settings(locked=event.locked))
    except ValueError as problem:
        return unchanged(Edited)._replace(problem=formatting.problem(problem))
    return Edited(event.locked, "")


def load(session: Session, request: Request, ratios_file: str) -> Edited:
    """Lock the ratios of a file (.csv or .json) where they can be met; explain where they cannot, and change nothing.

    Columns: layer, attention_ratio, mlp_ratio, shares from 0 to 1; what is left empty shares what is left.
    """
    try:
        request = measure.with_ratios(request.with_settings(locked=""), ratios_file)
        session.plan(request)
    except ValueError as problem:
        return unchanged(Edited)._replace(problem=formatting.problem(problem))
    return Edited(request.settings.locked, "")


def save(session: Session, downloads: Downloads, request: Request) -> str:
    """The present plan's ratios as a CSV file, which `load` and the command line's `--ratios` read again."""
    return str(downloads.put("ratios.csv", lambda path: measure.write_ratios(session, request, path)))


def build() -> OverridesPanel:
    """Called inside the Ratios tab, below the bars whose ratios the table repeats."""
    table = gr.HTML(
        "",
        html_template=LazyString(_template),
        js_on_load=(ASSETS / "overrides.js").read_text(encoding="utf-8"),
        elem_id="overrides",
        apply_default_css=False,
    )
    problem = gr.HTML(elem_id="overrides-problem", apply_default_css=False)
    with gr.Row(equal_height=True, elem_id="ratio-files"):
        upload = gr.UploadButton(
            lazy_gettext("Load ratios (.csv, .json)"), file_types=[".csv", ".json"], size="sm", scale=0, min_width=190
        )
        button = gr.Button(
            lazy_gettext("Save these ratios (.csv)"), size="sm", scale=0, min_width=190, elem_id="ratios-save"
        )
    return OverridesPanel(table, problem, upload, button, gr.DownloadButton(visible="hidden"))


def connect(panel: OverridesPanel, context: Context) -> None:
    """An edit becomes the page's setting, and another setting is shown in the table."""
    controls = context.controls
    edited = Edited(controls.locked, panel.problem)
    panel.table.select(spread_settings(edit, context.session), controls.settings, [*edited], **PRIVATE, **CHEAP)
    told = [panel.table, panel.problem]
    on_latest(
        [controls.locked.change],
        fn=lambda locked: (locked, ""),
        inputs=controls.locked,
        outputs=told,
        **PRIVATE,
        **CHEAP,
    )
    asked = [*controls.settings, panel.upload]
    panel.upload.upload(spread_settings(load, context.session), asked, [*edited], **PRIVATE, **CHEAP)
    saving = spread_settings(save, context.session, context.downloads)
    saved = panel.save.click(saving, controls.settings, panel.file, api_name="save_ratios", **CHEAP)
    saved.success(None, panel.file, None, js=SAVE, **CHEAP)
