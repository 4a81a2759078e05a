"""Sets the controls to the initial state of a lesson's step, which the browser's panel requests by number."""

from __future__ import annotations

import time
from typing import Any

import gradio as gr

from ..lesson import state_of
from ..state.settings import CONTROLS, Settings
from . import link

# Controls that keep their values unless a step sets them.
KEPT = (*(name for name, control in CONTROLS.items() if control.calibrates), "layer")
FORWARD_EVENT = 'addEventListener("isx-lesson", ({ detail }) => trigger("select", detail));'


def receiver() -> gr.HTML:
    """The component whose event `select` comes from the panel of `assets/lesson/`."""
    return gr.HTML("<i></i>", js_on_load=FORWARD_EVENT, elem_id="lesson-wire", apply_default_css=False)


def begin(event: gr.EventData) -> dict[str, Any]:
    """Values of the settings and the layer for a step, and a new value of `Context.refresh`."""
    state = state_of(event.step, event.phase)
    if not state:
        return {}
    values = link.read(state)
    names = [name for name in (*Settings._fields, "layer") if name in state or name not in KEPT]
    return {name: values[name] for name in names} | {"refresh": str(time.time())}
