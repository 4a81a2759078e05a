"""Sets the controls to the initial state of a lesson's step, which the browser's panel requests by number."""

from __future__ import annotations

import time
from typing import Any

import gradio as gr

from ..lesson.steps import state_of
from ..state.settings import Settings
from . import link
from .context import CHEAP, PRIVATE
from .controls import Controls

# Controls that keep their values unless a step sets them.
KEPT = ("model", "text", "upload", "sequences", "length", "seed", "dtype", "layer")
FORWARD_EVENT = 'addEventListener("isx-lesson", ({ detail }) => trigger("select", detail));'


def connect(controls: Controls, refresh: gr.Textbox) -> None:
    """Connect the panel of `assets/lesson/`. Called inside the page's `gr.Blocks()`."""
    receiver = gr.HTML("<i></i>", js_on_load=FORWARD_EVENT, elem_id="lesson-wire", apply_default_css=False)
    outputs = [*controls.settings, controls.layer, refresh]
    receiver.select(begin, None, outputs, trigger_mode="multiple", **PRIVATE, **CHEAP)


def begin(event: gr.EventData) -> tuple[Any, ...]:
    """Values of the settings and the layer for a step, and a new value of `Context.refresh`."""
    state = state_of(event.step, event.phase)
    names = (*Settings._fields, "layer")
    if not state:
        return (gr.skip(),) * (len(names) + 1)
    values = link.read(state)._asdict()
    kept = {name: gr.skip() for name in KEPT if name not in state}
    return *((values | kept)[name] for name in names), str(time.time())
