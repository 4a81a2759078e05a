"""The toolbar: pin a setting as A, to which the page compares the current setting; undo and redo of settings."""

from collections.abc import Sequence
from functools import partial
from html import escape
from typing import Any

import gradio as gr

from ..gradio_compat.browser.on_latest import on_latest
from ..i18n.language import gettext, lazy_gettext
from ..state.request import Request
from ..state.settings import CONTROLS
from ..ui import pinned_text
from ..ui.chart_bridge import is_chart, overlay_update
from ..ui.handlers import LiveOutput, leave_unchanged
from . import handlers
from .context import HEAVY, Context, in_browser, tell

# The controls that undo and redo set. `assets/history.js` takes their values from those of the link.
HISTORY_FIELDS = [*(name for name, control in CONTROLS.items() if control.in_link), "pinned"]


class Toolbar:
    """The toolbar's components, which the constructor creates above the slider."""

    def __init__(self) -> None:
        button = partial(gr.Button, size="md", min_width=60, scale=0)
        with gr.Row(elem_id="actions"):
            self.pin = button(lazy_gettext("Pin this setting"), elem_id="pin")
            self.unpin = button(lazy_gettext("Unpin A"), elem_id="unpin", visible=False)
            self.description = gr.HTML(elem_id="pinned", apply_default_css=False)
            self.undo = button(lazy_gettext("Undo"), elem_id="undo")
            self.redo = button(lazy_gettext("Redo"), elem_id="redo")


def pin(request: Request) -> str:
    """Pin these settings as A; returns their text, which a link carries as `pinned`."""
    return pinned_text.write(request)


def describe(request: Request, pinned_setting: str) -> dict[str, Any]:
    """The pinned setting's name (HTML), or the reason why it is not shown; whether it can be unpinned."""
    settings, pinned = request.settings, pinned_text.read(pinned_setting)
    if pinned is None:
        return {"description": "", "unpin": gr.update(visible=False)}
    if pinned_text.comparable_request(pinned_setting, request) is not None:
        name = pinned_text.name_of(pinned, settings._replace(upload=pinned.upload))
    elif pinned.model != settings.model:
        name = gettext("a setting of {model}; it is shown when that model is chosen again", model=pinned.model)
    else:
        name = gettext("calibrated on a file that is no longer available")
    text = gettext("<b>A</b> is {words}.", words=escape(name))
    return {"description": f'<p class="isx-quiet">{text}</p>', "unpin": gr.update(visible=True)}


def overlays(
    live_outputs: Sequence[LiveOutput],
    request: Request,
    layer: int,
    active_tab: str,
    pinned: Request | None,
    client: str,
) -> dict[str, Any]:
    """Updates of the pinned setting's overlays on the charts of the active tab, by the charts' ids."""
    updates: dict[str, Any] = {}
    for live_output in live_outputs:
        charts = {name: output.elem_id for name, output in live_output.outputs.items() if is_chart(output)}
        if charts and live_output.tab == active_tab:
            show = live_output.for_pinned or live_output.handler
            shown = show(pinned, layer, client) if pinned else {}
            updates |= {chart: overlay_update(shown.get(name)) for name, chart in charts.items()}
    return updates


def connect(toolbar: Toolbar, context: Context) -> None:
    """Connect the toolbar, and the overlays of all tabs' live outputs; called after the tabs are connected."""
    controls, session, call, refresh = context.controls, context.session, context.call, context.refresh
    pinned, layer, model = controls.pinned, controls.layer, controls.settings["model"]
    description = {"description": toolbar.description, "unpin": toolbar.unpin}
    toolbar.pin.click(**call(pin, outputs={"pinned": pinned}, api_name="pin"))
    toolbar.unpin.click(**in_browser("() => ''", None, pinned))
    described = call(describe, outputs=description, refuse=leave_unchanged, pinned_setting=pinned)
    on_latest([pinned.change, model.change, *context.on_commit], **described)  # it names what is otherwise now

    texts = {"status": context.status, **context.texts}
    measure = call(handlers.measure_pinned, session, outputs=texts, refuse=leave_unchanged, queue=HEAVY)
    on_latest([pinned.change, context.measured.change], **measure).then(**tell(context.pinned_measured))

    live_outputs = [*context.always, *context.when_open, *context.subscribed]
    outputs = [output for live_output in live_outputs for output in live_output.outputs.values()]
    charts = {str(output.elem_id): output for output in outputs if is_chart(output)}
    draw = call(overlays, live_outputs, outputs=charts, refuse=leave_unchanged)
    signals = [refresh, context.prepared, context.pinned_measured, *context.opened.values()]
    on_latest([pinned.change, layer.change, *(signal.change for signal in signals)], **draw)

    history = {**controls.settings, "pinned": pinned}
    restored = [*(history[name] for name in HISTORY_FIELDS), refresh]
    for button, step in ((toolbar.undo, -1), (toolbar.redo, 1)):
        button.click(**in_browser(f"() => isx.step({step})", None, restored))
