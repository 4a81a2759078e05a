"""Building blocks of the Export tab: headings, notes, and code with a copy button."""

from __future__ import annotations

from collections.abc import Callable

import gradio as gr

from ..i18n.language import LazyString, gettext, translate
from ..ui.scripts import on_load


def link_field() -> str:
    """A field for the link to this view (HTML)."""
    return (
        f'<div class="isx-copy"><input type="text" readonly aria-label="{gettext("Link to this view")}">'
        f'<button type="button" aria-label="{gettext("Copy the link")}">{gettext("Copy")}</button></div>'
    )


def code_block(label: LazyString) -> str:
    """A code block and its copy button (HTML)."""
    name = translate(label)
    return (
        f'<div class="isx-copy"><pre tabindex="0" role="region" aria-label="{name}"></pre>'
        f'<button type="button" aria-label="{gettext("Copy: {what}", what=name)}">{gettext("Copy")}</button></div>'
    )


def copyable(template: Callable[[], str], elem_id: str) -> gr.HTML:
    """A component with a copy button (`assets/copy.js`)."""
    return gr.HTML(
        html_template=LazyString(template), js_on_load=on_load("copy"), elem_id=elem_id, apply_default_css=False
    )


def heading(text: LazyString) -> None:
    """The heading of a section."""
    gr.HTML(LazyString(lambda: f"<h3>{translate(text)}</h3>"), apply_default_css=False)


def note(text: LazyString) -> None:
    """A note in quiet text."""
    gr.HTML(LazyString(lambda: f'<p class="isx-quiet">{translate(text)}</p>'), apply_default_css=False)
