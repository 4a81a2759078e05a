"""Pin and compare: one setting is kept as A, beside which every other one is seen; and undo and redo of settings."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from typing import Any, NamedTuple

import gradio as gr

from components.frame import slider
from components.frame.context import CHEAP, HEAVY, PRIVATE, Context
from components.frame.events import Frame
from components.gradio_compat.browser.on_latest import on_latest
from components.i18n.language import gettext, lazy_gettext
from components.state.request import Request
from components.state.settings import Settings
from components.ui.chart_bridge import ghost_update, is_chart
from components.ui.handlers import LiveOutput, leave_unchanged, spread_settings
from components.ui.pinned import text as pinned_text
from components.ui.pinned.differences import name_of

# What undo and redo set again. `assets/history.js` takes the values from what a link remembers.
UNDONE = [name for name in (*Settings._fields, "pinned") if name != "upload"]


class Toolbar(NamedTuple):
    """The row's components."""

    pin: gr.Button
    unpin: gr.Button
    words: gr.HTML
    undo: gr.Button
    redo: gr.Button


class Told(NamedTuple):
    """What is pinned, in words, and whether it can be let go."""

    words: Any
    unpin: Any


def build() -> Toolbar:
    """The row over the slider."""
    with gr.Row(elem_id="actions"):
        pin = gr.Button(lazy_gettext("Pin this setting"), size="md", elem_id="pin", min_width=60, scale=0)
        unpin = gr.Button(lazy_gettext("Unpin A"), size="md", elem_id="unpin", min_width=60, scale=0, visible=False)
        words = gr.HTML(elem_id="pinned", apply_default_css=False)
        undo = gr.Button(lazy_gettext("Undo"), size="md", elem_id="undo", min_width=60, scale=0)
        redo = gr.Button(lazy_gettext("Redo"), size="md", elem_id="redo", min_width=60, scale=0)
    return Toolbar(pin, unpin, words, undo, redo)


def pin(request: Request) -> str:
    """Keep these settings as A; returns their text, which a link carries as `pinned`."""
    return pinned_text.write(request)


def tell(request: Request, kept: str) -> Told:
    """What A is (HTML), or why it is not shown now."""
    settings, setting = request.settings, pinned_text.read(kept)
    if setting is None:
        return Told("", gr.update(visible=False))
    if pinned_text.beside(kept, request) is not None:
        words = name_of(setting, settings._replace(upload=setting.upload))
    elif setting.model != settings.model:
        words = gettext("a setting of {model}; it is shown when that model is chosen again", model=setting.model)
    else:
        words = gettext("calibrated on a file that is no longer available")
    told = gettext("<b>A</b> is {words}.", words=escape(words))
    return Told(f'<p class="isx-quiet">{told}</p>', gr.update(visible=True))


def ghosts(
    live_outputs: Sequence[LiveOutput],
    request: Request,
    layer: int,
    opened: str,
    pinned: Request | None,
    client: str,
) -> tuple[Any, ...]:
    """The pinned setting's ghosts for the charts of the open tab; those of the others stay as they are."""
    updates: list[Any] = []
    for live_output in live_outputs:
        charts = [is_chart(component) for component in live_output.outputs]
        if live_output.tab != opened or not any(charts):
            updates += [gr.skip()] * sum(charts)
            continue
        show = live_output.show_pinned or live_output.show
        shown = show(pinned, layer, client) if pinned else [None] * len(charts)
        updates += [ghost_update(value) for value, drawn in zip(shown, charts, strict=True) if drawn]
    return tuple(updates)


def connect(toolbar: Toolbar, context: Context, frame: Frame) -> None:
    """Attach the row, and the ghosts of all tabs, which say before what followers they have."""
    controls, session = context.controls, context.session
    kept, settings = controls.pinned, controls.settings
    toolbar.pin.click(spread_settings(pin), settings, kept, api_name="pin", **CHEAP)
    toolbar.unpin.click(lambda: "", None, kept, **PRIVATE, **CHEAP)

    telling = {
        "fn": spread_settings(tell, refuse=leave_unchanged),
        "inputs": [*settings, kept],
        "outputs": [*Told(toolbar.words, toolbar.unpin)],
    }
    on_latest([kept.change, controls.model.change, context.refresh.change], **telling, **PRIVATE, **CHEAP)

    drawing = {
        "fn": spread_settings(ghosts, context.live_outputs, refuse=leave_unchanged),
        "inputs": [*settings, controls.layer, context.tab, kept],
        "outputs": [output for one in context.live_outputs for output in one.outputs if is_chart(output)],
        **PRIVATE,
        **CHEAP,
    }
    on_latest([kept.change, controls.layer.change, context.refresh.change], **drawing)
    for end in (*context.opened.values(), *context.prepared, *context.pinned_known):
        end.then(**drawing)
    measuring = {
        "fn": spread_settings(slider.measure_pinned, session, refuse=leave_unchanged),
        "inputs": [*settings, kept],
        "outputs": frame.status,
        **PRIVATE,
        **HEAVY,
    }
    comparing = {
        "fn": spread_settings(slider.compare_pinned, session, refuse=leave_unchanged),
        "inputs": [*settings, kept],
        "outputs": [*slider.Compared(controls.readout, frame.headline)],
        **PRIVATE,
        **CHEAP,
    }
    for end in (on_latest([kept.change], **measuring), *(end.then(**measuring) for end in context.measured)):
        end.then(**comparing).then(**drawing)

    undone = [*(getattr(controls, name) for name in UNDONE), context.refresh]
    for button, step in ((toolbar.undo, -1), (toolbar.redo, 1)):
        button.click(None, None, undone, js=f"() => window.isxStep({step})", **PRIVATE, **CHEAP)
