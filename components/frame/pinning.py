"""The toolbar: pin a setting as A, to which the page compares the current setting; undo and redo of settings."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from typing import Any, NamedTuple

import gradio as gr

from ..gradio_compat.browser.on_latest import on_latest
from ..i18n.language import gettext, lazy_gettext
from ..state.request import Request
from ..state.settings import Settings
from ..ui.chart_bridge import is_chart, overlay_update
from ..ui.handlers import LiveOutput, leave_unchanged, spread_settings
from ..ui.pinned import text as pinned_text
from ..ui.pinned.differences import name_of
from . import slider
from .context import CHEAP, HEAVY, PRIVATE, Context
from .events import Frame

# The controls that undo and redo set. `assets/history.js` takes their values from those of the link.
HISTORY_FIELDS = [name for name in (*Settings._fields, "pinned") if name != "upload"]


class Toolbar(NamedTuple):
    """The toolbar's components."""

    pin: gr.Button
    unpin: gr.Button
    description: gr.HTML
    undo: gr.Button
    redo: gr.Button


class Description(NamedTuple):
    """The description of the pinned setting, and the button that unpins it."""

    text: Any
    unpin: Any


def build() -> Toolbar:
    """The toolbar above the slider."""
    with gr.Row(elem_id="actions"):
        pin = gr.Button(lazy_gettext("Pin this setting"), size="md", elem_id="pin", min_width=60, scale=0)
        unpin = gr.Button(lazy_gettext("Unpin A"), size="md", elem_id="unpin", min_width=60, scale=0, visible=False)
        description = gr.HTML(elem_id="pinned", apply_default_css=False)
        undo = gr.Button(lazy_gettext("Undo"), size="md", elem_id="undo", min_width=60, scale=0)
        redo = gr.Button(lazy_gettext("Redo"), size="md", elem_id="redo", min_width=60, scale=0)
    return Toolbar(pin, unpin, description, undo, redo)


def pin(request: Request) -> str:
    """Pin these settings as A; returns their text, which a link carries as `pinned`."""
    return pinned_text.write(request)


def describe(request: Request, pinned_setting: str) -> Description:
    """The pinned setting's name (HTML), or the reason why it is not shown."""
    settings, pinned = request.settings, pinned_text.read(pinned_setting)
    if pinned is None:
        return Description("", gr.update(visible=False))
    if pinned_text.comparable_request(pinned_setting, request) is not None:
        name = name_of(pinned, settings._replace(upload=pinned.upload))
    elif pinned.model != settings.model:
        name = gettext("a setting of {model}; it is shown when that model is chosen again", model=pinned.model)
    else:
        name = gettext("calibrated on a file that is no longer available")
    text = gettext("<b>A</b> is {words}.", words=escape(name))
    return Description(f'<p class="isx-quiet">{text}</p>', gr.update(visible=True))


def overlays(
    live_outputs: Sequence[LiveOutput],
    request: Request,
    layer: int,
    active_tab: str,
    pinned: Request | None,
    client: str,
) -> tuple[Any, ...]:
    """Updates of the pinned setting's overlays on the charts of the active tab; other tabs' charts are unchanged."""
    updates: list[Any] = []
    for live_output in live_outputs:
        are_charts = [is_chart(component) for component in live_output.outputs]
        if live_output.tab != active_tab or not any(are_charts):
            updates += [gr.skip()] * sum(are_charts)
            continue
        show = live_output.show_pinned or live_output.show
        values = show(pinned, layer, client) if pinned else [None] * len(are_charts)
        updates += [overlay_update(value) for value, is_drawn in zip(values, are_charts, strict=True) if is_drawn]
    return tuple(updates)


def connect(toolbar: Toolbar, context: Context, frame: Frame) -> None:
    """Connect the toolbar, and the overlays of all tabs' live outputs; called after the tabs are connected."""
    controls, session = context.controls, context.session
    pinned, settings = controls.pinned, controls.settings
    toolbar.pin.click(spread_settings(pin), settings, pinned, api_name="pin", **CHEAP)
    toolbar.unpin.click(lambda: "", None, pinned, **PRIVATE, **CHEAP)

    describe_pinned = {
        "fn": spread_settings(describe, refuse=leave_unchanged),
        "inputs": [*settings, pinned],
        "outputs": [*Description(toolbar.description, toolbar.unpin)],
    }
    on_latest([pinned.change, controls.model.change, context.refresh.change], **describe_pinned, **PRIVATE, **CHEAP)

    outputs = [output for live_output in context.live_outputs for output in live_output.outputs]
    draw_overlays = {
        "fn": spread_settings(overlays, context.live_outputs, refuse=leave_unchanged),
        "inputs": [*settings, controls.layer, context.tab, pinned],
        "outputs": [output for output in outputs if is_chart(output)],
        **PRIVATE,
        **CHEAP,
    }
    on_latest([pinned.change, controls.layer.change, context.refresh.change], **draw_overlays)
    for end in (*context.opened.values(), *context.prepared, *context.pinned_measured):
        end.then(**draw_overlays)
    measure_pinned = {
        "fn": spread_settings(slider.measure_pinned, session, outputs=slider.MEASURED, refuse=leave_unchanged),
        "inputs": [*settings, controls.layer, pinned],
        "outputs": [frame.status, controls.readout, frame.headline, frame.removed, frame.perplexity],
        **PRIVATE,
        **HEAVY,
    }
    measured = (end.then(**measure_pinned) for end in context.measured)
    for end in (on_latest([pinned.change], **measure_pinned), *measured):
        end.then(**draw_overlays)

    history_outputs = [*(getattr(controls, name) for name in HISTORY_FIELDS), context.refresh]
    for button, step in ((toolbar.undo, -1), (toolbar.redo, 1)):
        button.click(None, None, history_outputs, js=f"() => isx.step({step})", **PRIVATE, **CHEAP)
