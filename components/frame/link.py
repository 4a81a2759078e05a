"""The address bar: what a link carries, and how the page is restored from one."""

from __future__ import annotations

from collections import namedtuple
from collections.abc import Mapping, Sequence
from typing import Any

import gradio as gr

from components.frame.controls import SLIDERS
from components.jobs import limits
from components.lesson.steps import state_of
from components.state.choices import PRECISIONS
from components.state.request import default_precision, parse
from components.state.settings import PROMPT, Settings
from components.ui.handlers import CHECKS
from components.ui.pinned import text as pinned_text
from components.ui.pinned.text import typed


def _record(name: str, fields: Sequence[str]) -> Any:
    """A class of named tuples. Any to a type checker, which cannot derive the fields from those of Settings."""
    return namedtuple(name, fields)


# What a link carries. `assets/page.js` takes the names, in this order, from what the page opens with.
Linked = _record("Linked", [*Settings._fields, "layer", "prompt", "pinned"])
Restored = _record("Restored", [*Linked._fields, "tabs"])
FIRST_TAB = "ratios"


def usual() -> Any:
    """A `Linked` of what the page opens with anyway, and what therefore stays out of a link."""
    return Linked(**Settings()._asdict(), layer=0, prompt=PROMPT, pinned="")


def restore(caller: gr.Request) -> Any:
    """Read the address bar into a `Restored`: the settings, those pinned, the layer, the prompt and the tab of a link.

    What the page would refuse is left as it opens anyway, and so is all of a link that is too long. A link always names
    the precision, so that another machine gives the same numbers; without one it is this machine's. A step of the
    lesson (`?lesson=3`) stands for the state that it begins with.
    """
    query: Mapping[str, str] = dict(caller.query_params) if caller else {}
    if sum(len(name) + len(value) for name, value in query.items()) > limits.LINK.value:
        query = {}
    query = {**state_of(query.get("lesson")), **query}
    return Restored(**read(query)._asdict(), tabs=gr.Tabs(selected=query.get("tab", FIRST_TAB)))


def read(query: Mapping[str, str]) -> Any:
    """A `Linked` of what a link's query carries, without the tab; what the page would refuse is as it opens anyway."""
    linked = {name: _allowed(name, typed(query.get(name), value), value) for name, value in usual()._asdict().items()}
    linked["upload"] = None  # no link names a file
    linked["dtype"] = linked["dtype"] if linked["dtype"] in PRECISIONS else default_precision()
    linked["prompt"] = linked["prompt"] or PROMPT
    return Linked(**linked)


def _allowed(name: str, value: Any, default: Any) -> Any:
    """What a link gives, unless the page would refuse it."""
    try:
        if name in CHECKS:
            return CHECKS[name](value)
        if name == "pinned":
            return _pinned(value)
        if name in SLIDERS:
            limits.number(name, value, *SLIDERS[name])
        parse(Settings()._replace(**{name: value}))
    except ValueError:
        return default
    return value


def _pinned(text: str) -> str:
    """The text of the pinned setting as the page itself writes it, without an upload: no link names a file."""
    settings = pinned_text.read(text)
    if settings is None or settings.upload:
        return ""
    for name, ends in SLIDERS.items():
        limits.number(name, getattr(settings, name), *ends)
    request = parse(settings)
    return pinned_text.write(request.with_settings(dtype=request.calibration.dtype))
