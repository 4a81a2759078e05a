"""Texts on the page: the title with its buttons, headings, notes, explanations below the charts, and the glossary."""

import json
from collections.abc import Callable
from typing import Any

import gradio as gr

from ..i18n.language import LANGUAGES, LazyString, gettext, language, long_text, translate


def header() -> None:
    """The title, the buttons for tour, lesson, presenter mode and keyboard shortcuts, and the languages."""
    lazy_html(_header, elem_id="page-title")


def glossary() -> None:
    """The glossary, folded at the end of the page, and the list of keyboard shortcuts, which `assets/keys.js` opens."""
    lazy_html(lambda: _folded(gettext("Glossary"), "glossary", "isx-fold isx-glossary") + _shortcuts())


def fold(name: str) -> None:
    """The folded "What am I looking at?" below a chart, from `assets/texts/LANGUAGE/NAME.html`."""
    lazy_html(lambda: _folded(gettext("What am I looking at?"), name, "isx-fold"))


def heading(text: str, **options: Any) -> None:
    """A heading of a section."""
    lazy_html(lambda: f"<h3>{translate(text)}</h3>", **options)


def note(text: str, style: str = "isx-quiet", **options: Any) -> gr.HTML:
    """A paragraph."""
    return lazy_html(lambda: paragraph(text, style), **options)


def paragraph(text: str, style: str = "isx-quiet") -> str:
    """A paragraph in the client's language (HTML)."""
    return f'<p class="{style}">{translate(text)}</p>'


def lazy_html(draw: Callable[[], str], **options: Any) -> gr.HTML:
    """A component with HTML in the client's language."""
    return gr.HTML(LazyString(draw), apply_default_css=False, **options)


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


def _shortcuts() -> str:
    rows = "".join(
        f"<div><dt>{' '.join(f'<kbd>{key}</kbd>' for key in entry['keys'])}</dt><dd>{entry['does']}</dd></div>"
        for entry in json.loads(long_text("keys.json"))
    )
    return (
        f'<dialog class="isx-keys" aria-labelledby="isx-keys-title">'
        f'<h3 id="isx-keys-title">{gettext("Keyboard shortcuts")}</h3><dl>{rows}</dl>'
        f'<label><input type="checkbox"> {gettext("Enable single-key shortcuts")}</label>'
        f'<form method="dialog"><button>{gettext("Close")}</button></form></dialog>'
    )
