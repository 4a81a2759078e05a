"""The lesson's wire: the state of a step, which the browser's panel asks for by number, is set as a link's is."""

from __future__ import annotations

import time
from typing import Any

import gradio as gr

from components.frame import link
from components.frame.context import CHEAP, PRIVATE
from components.frame.controls import Controls
from components.lesson.steps import state_of
from components.state.settings import Settings

# The layer in view, and what a model and its calibration depend on: as the visitor has it, unless a step names it.
STAYS = ("model", "text", "upload", "sequences", "length", "seed", "dtype", "layer")
WIRE = 'addEventListener("isx-lesson", ({ detail }) => trigger("select", detail));'


def connect(controls: Controls, refresh: gr.Textbox) -> None:
    """Attach the panel of `assets/lesson/`. Called inside the `gr.Blocks()` that holds the controls."""
    wire = gr.HTML("<i></i>", js_on_load=WIRE, elem_id="lesson-wire", apply_default_css=False)
    wire.select(begin, None, [*controls.settings, controls.layer, refresh], **PRIVATE, **CHEAP)


def begin(event: gr.EventData) -> tuple[Any, ...]:
    """The settings and the layer that a step begins with, and what tells the page that they have come to rest."""
    state = state_of(event.step, event.phase)
    names = (*Settings._fields, "layer")
    if not state:
        return (gr.skip(),) * (len(names) + 1)
    wanted = link.read(state)._asdict()
    kept = {name: gr.skip() for name in STAYS if name not in state}
    return *((wanted | kept)[name] for name in names), str(time.time())
