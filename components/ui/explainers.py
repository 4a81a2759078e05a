"""What explains the page: the title with its buttons, the folds under the charts, and the glossary."""

from __future__ import annotations

import gradio as gr

from components.i18n.language import LANGUAGES, LazyString, gettext, language, long_text


def header() -> None:
    """The page's title, the buttons of the tour, the lesson, the presenter mode and the list of keys, the languages."""
    gr.HTML(LazyString(_header), elem_id="page-title", apply_default_css=False)


def glossary() -> None:
    """The field's words, folded away at the end of the page."""
    gr.HTML(
        LazyString(lambda: _folded(gettext("Glossary"), "glossary", "isx-fold isx-glossary")),
        apply_default_css=False,
    )


def fold(name: str) -> None:
    """The "What am I looking at?" under a chart, from `assets/texts/LANGUAGE/NAME.html`."""
    gr.HTML(LazyString(lambda: _folded(gettext("What am I looking at?"), name, "isx-fold")), apply_default_css=False)


def _header() -> str:
    names = {
        "tour": gettext("Tour"),
        "lesson": gettext("Lesson"),
        "present": gettext("Present"),
        "keys": gettext("Keys"),
    }
    buttons = "".join(f'<button type="button" id="{name}">{label}</button>' for name, label in names.items())
    # A link keeps the settings: `assets/page.js` gives it the address as it is now.
    languages = "".join(
        f'<a href="?lang={code}" lang="{code}" hreflang="{code}"{" aria-current=true" if code == language() else ""}>'
        f"{one.name}</a>"
        for code, one in LANGUAGES.items()
    )
    switch = f'<nav class="isx-languages" aria-label="{gettext("Language")}">{languages}</nav>'
    return f'<div class="isx-top"><h1>IntraSlice Explorer</h1>{buttons}{switch}</div>'


def _folded(summary: str, name: str, style: str) -> str:
    return f'<details class="{style}"><summary>{summary}</summary>{long_text(f"{name}.html")}</details>'
