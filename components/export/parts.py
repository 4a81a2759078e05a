"""What the Export tab is laid out with: headings, quiet lines, and words with a button that copies them."""

from __future__ import annotations

from collections.abc import Callable

import gradio as gr

from components.assets import ASSETS
from components.i18n.language import Words, say, spoken


def link() -> str:
    """A field for the link to this view (HTML)."""
    return (
        f'<div class="isx-copy"><input type="text" readonly aria-label="{say("Link to this view")}">'
        f'<button type="button" aria-label="{say("Copy the link")}">{say("Copy")}</button></div>'
    )


def words(what: Words) -> str:
    """A place for words set as code, by what they are (HTML)."""
    label = spoken(what)
    return (
        f'<div class="isx-copy"><pre tabindex="0" role="region" aria-label="{label}"></pre>'
        f'<button type="button" aria-label="{say("Copy: {what}", what=label)}">{say("Copy")}</button></div>'
    )


def copied(template: Callable[[], str], elem_id: str) -> gr.HTML:
    """Words and a button that copies them (`assets/copy.js`)."""
    script = (ASSETS / "copy.js").read_text(encoding="utf-8")
    return gr.HTML(html_template=Words(template), js_on_load=script, elem_id=elem_id, apply_default_css=False)


def heading(text: Words) -> None:
    """Of a part of the tab."""
    gr.HTML(Words(lambda: f"<h3>{spoken(text)}</h3>"), apply_default_css=False)


def note(text: Words) -> None:
    """A quiet line."""
    gr.HTML(Words(lambda: f'<p class="isx-quiet">{spoken(text)}</p>'), apply_default_css=False)
