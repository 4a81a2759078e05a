"""Explanations on the page: the title with its buttons, the texts below the charts, and the glossary."""

from __future__ import annotations

import gradio as gr

from ..i18n.language import LANGUAGES, LazyString, gettext, language, long_text


def header() -> None:
    """The title, the buttons for tour, lesson, presenter mode and keyboard shortcuts, and the languages."""
    gr.HTML(LazyString(_header), elem_id="page-title", apply_default_css=False)


def glossary() -> None:
    """The glossary, folded at the end of the page."""
    gr.HTML(
        LazyString(lambda: _folded(gettext("Glossary"), "glossary", "isx-fold isx-glossary")),
        apply_default_css=False,
    )


def fold(name: str) -> None:
    """The folded "What am I looking at?" below a chart, from `assets/texts/LANGUAGE/NAME.html`."""
    gr.HTML(LazyString(lambda: _folded(gettext("What am I looking at?"), name, "isx-fold")), apply_default_css=False)


def _header() -> str:
    names = {
        "tour": gettext("Tour"),
        "lesson": gettext("Lesson"),
        "present": gettext("Present"),
        "keys": gettext("Shortcuts"),
    }
    buttons = "".join(f'<button type="button" id="{name}">{label}</button>' for name, label in names.items())
    # `assets/page.js` replaces the links' addresses, so that they keep the settings.
    languages = "".join(
        f'<a href="?lang={code}" lang="{code}" hreflang="{code}"{" aria-current=true" if code == language() else ""}>'
        f"{entry.name}</a>"
        for code, entry in LANGUAGES.items()
    )
    switch = f'<nav class="isx-languages" aria-label="{gettext("Language")}">{languages}</nav>'
    return f'<div class="isx-top"><h1>IntraSlice Explorer</h1>{buttons}{switch}</div>'


def _folded(summary: str, name: str, style: str) -> str:
    return f'<details class="{style}"><summary>{summary}</summary>{long_text(f"{name}.html")}</details>'
