"""The address bar: what a link carries, and how the page is restored from one."""

from __future__ import annotations

from collections import namedtuple
from collections.abc import Mapping
from typing import Any

import gradio as gr

from components.session.settings import PROMPT, Settings

# What a link carries. `assets/page.js` takes the names, in this order, from what the page opens with.
Linked = namedtuple("Linked", [*Settings._fields, "layer", "prompt"])
Restored = namedtuple("Restored", [*Linked._fields, "tabs", "tab"])
USUAL = Linked(**Settings()._asdict(), layer=0, prompt=PROMPT)  # stays out of the link
FIRST_TAB = "ratios"


def restore(request: gr.Request) -> Restored:
    """Read the address bar: the settings, the layer, the prompt and the tab that a link carries."""
    query: Mapping[str, str] = dict(request.query_params) if request else {}
    linked = {name: _typed(query.get(name), usual) for name, usual in USUAL._asdict().items()}
    linked["upload"] = None  # no link names a file
    linked["prompt"] = query.get("prompt") or PROMPT
    tab = query.get("tab", FIRST_TAB)
    return Restored(**linked, tabs=gr.Tabs(selected=tab), tab=tab)


def _typed(text: str | None, usual: Any) -> Any:
    if text is None or isinstance(usual, str):
        return usual if text is None else text
    if isinstance(usual, bool):
        return text.lower() == "true"
    try:
        return float(text) if usual is None else type(usual)(float(text))
    except (ValueError, OverflowError):  # a mistyped link opens the page all the same
        return usual
