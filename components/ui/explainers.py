"""What explains the page: the title with its buttons, the folds under the charts, and the glossary."""

from __future__ import annotations

import gradio as gr

from components.assets import ASSETS


def header() -> None:
    """The page's title, and the buttons of the tour, the lesson, the presenter mode and the list of keys."""
    names = {"tour": "Tour", "lesson": "Lesson", "present": "Present", "keys": "Keys"}
    buttons = "".join(f'<button type="button" id="{name}">{label}</button>' for name, label in names.items())
    title = f'<div class="isx-top"><h1>IntraSlice Explorer</h1>{buttons}</div>'
    gr.HTML(title, elem_id="page-title", apply_default_css=False)


def glossary() -> None:
    """The field's words, folded away at the end of the page."""
    gr.HTML(_folded("Glossary", "glossary", "isx-fold isx-glossary"), apply_default_css=False)


def fold(name: str) -> None:
    """The "What am I looking at?" under a chart, from `assets/texts/en/NAME.html`."""
    gr.HTML(_folded("What am I looking at?", name, "isx-fold"), apply_default_css=False)


def _folded(summary: str, name: str, style: str) -> str:
    body = (ASSETS / "texts" / "en" / f"{name}.html").read_text(encoding="utf-8")
    return f'<details class="{style}"><summary>{summary}</summary>{body}</details>'
