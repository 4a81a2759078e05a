"""What the Export tab is laid out with: headings, quiet lines, and words with a button that copies them."""

from __future__ import annotations

from collections.abc import Callable

import gradio as gr

from components.assets import ASSETS
from components.i18n.language import LazyString, gettext, translate


def link() -> str:
    """A field for the link to this view (HTML)."""
    return (
        f'<div class="isx-copy"><input type="text" readonly aria-label="{gettext("Link to this view")}">'
        f'<button type="button" aria-label="{gettext("Copy the link")}">{gettext("Copy")}</button></div>'
    )


def words(what: LazyString) -> str:
    """A place for words set as code, by what they are (HTML)."""
    label = translate(what)
    return (
        f'<div class="isx-copy"><pre tabindex="0" role="region" aria-label="{label}"></pre>'
        f'<button type="button" aria-label="{gettext("Copy: {what}", what=label)}">{gettext("Copy")}</button></div>'
    )


def copied(template: Callable[[], str], elem_id: str) -> gr.HTML:
    """Words and a button that copies them (`assets/copy.js`)."""
    script = (ASSETS / "copy.js").read_text(encoding="utf-8")
    return gr.HTML(html_template=LazyString(template), js_on_load=script, elem_id=elem_id, apply_default_css=False)


def heading(text: LazyString) -> None:
    """Of a part of the tab."""
    gr.HTML(LazyString(lambda: f"<h3>{translate(text)}</h3>"), apply_default_css=False)


def note(text: LazyString) -> None:
    """A quiet line."""
    gr.HTML(LazyString(lambda: f'<p class="isx-quiet">{translate(text)}</p>'), apply_default_css=False)
