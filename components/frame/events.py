"""Connects the events of the page's frame to their handlers. Events of a single tab are connected in its package."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

import gradio as gr

from ..gradio_compat.browser.on_latest import on_latest
from ..gradio_compat.signatures import partial_handler
from ..state.choices import NO_RECOVERY
from ..state.session import Session
from ..ui.downloads import Downloads
from ..ui.handlers import LiveOutput, leave_unchanged, spread_settings
from . import handlers, lesson, link, slider
from .context import CHEAP, HEAVY, PRIVATE, Context
from .controls import Controls


class Frame(NamedTuple):
    """The page's components that several tabs share."""

    controls: Controls
    tabs: gr.Tabs
    tab: gr.Textbox  # the id of the active tab; hidden
    status: gr.HTML
    headline: gr.HTML
    notice: gr.HTML  # of a link that names a model which the page does not load
    removed: gr.HTML
    measure_here: gr.Button  # hidden: a button in the headline clicks it
    prompt: gr.Textbox
    perplexity: gr.HTML
    panels: Mapping[str, Any]  # by tab id


def connect(
    page: gr.Blocks, session: Session, frame: Frame, always: Sequence[LiveOutput], when_open: Sequence[LiveOutput]
) -> Context:
    """Connect the events that several tabs share. Called inside the page's `gr.Blocks()`.

    Args:
        always: updated after every move of the slider.
        when_open: updated after every move while their tab is active.
    """
    controls = frame.controls
    with_layer = [*controls.settings, controls.layer]
    with_pinned = [*with_layer, controls.pinned]
    texts = [controls.readout, frame.headline, frame.removed, frame.perplexity]
    move_outputs = [output for live_output in always for output in live_output.outputs]
    move_outputs += [*texts, controls.bias_found]
    move: dict[str, Any] = {
        "fn": spread_settings(
            slider.move, session, always, when_open, refuse=partial(slider.refuse_move, always, when_open)
        ),
        "inputs": [*with_layer, frame.tab, controls.pinned],
        "outputs": [*move_outputs, *(output for live_output in when_open for output in live_output.outputs)],
        **PRIVATE,
        **CHEAP,
    }
    preview: dict[str, Any] = {
        "fn": spread_settings(slider.preview, session, always, refuse=partial(slider.refuse_move, always, ())),
        "inputs": with_pinned,
        "outputs": move_outputs,
        **CHEAP,
    }
    measure: dict[str, Any] = {
        "fn": spread_settings(slider.on_release, session, outputs=slider.MEASURED),
        "inputs": with_pinned,
        "outputs": [frame.status, *texts],
        **HEAVY,
    }
    refresh = gr.Textbox(visible=False)  # not gr.State, which has no change event outside of the queue
    # One listener handles all moves, one call at a time: otherwise a late answer could replace that of a newer setting.
    move_signal = gr.Textbox(visible=False)
    signal_move: dict[str, Any] = {
        "fn": None,
        "outputs": move_signal,
        "js": "() => String(Date.now())",
        **PRIVATE,
        **CHEAP,
    }
    prepare_outputs = [*handlers.Prepared(frame.status, refresh)]
    prepare: dict[str, Any] = {
        "fn": spread_settings(handlers.prepare, session),
        "inputs": controls.settings,
        "outputs": prepare_outputs,
        **HEAVY,
    }
    fit: dict[str, Any] = {
        "fn": spread_settings(handlers.fit_layers, session, refuse=leave_unchanged),
        "inputs": with_layer,
        "outputs": controls.layer,
        **CHEAP,
    }
    prepared: list[gr.events.Dependency] = []
    measured: list[gr.events.Dependency] = []
    released: list[gr.events.Dependency] = []

    def after_preparing(ready: gr.events.Dependency) -> None:
        prepared.append(ready.then(**fit, **PRIVATE).then(**signal_move))
        first_measure = {**measure, "fn": spread_settings(slider.on_prepared, session, outputs=slider.MEASURED)}
        measured.append(prepared[-1].then(**first_measure, **PRIVATE))

    linked = link.Linked(*with_layer, frame.prompt, controls.pinned)
    restored = link.Restored(*linked, frame.tabs, frame.notice)
    opened_page = page.load(
        partial_handler(link.restore_existing, session), None, [*restored], api_name="restore", **CHEAP
    )
    after_preparing(opened_page.then(**preview, api_name="ratios").then(**prepare, **PRIVATE))
    memory: dict[str, Any] = {
        "fn": partial_handler(handlers.memory, session),
        "inputs": controls.model,
        "outputs": controls.memory,
        **CHEAP,
    }
    page.load(**memory, **PRIVATE)
    page.unload(partial_handler(handlers.stop, session, [""]))
    remember = "(...values) => isx.remember(values)"
    opened_page.then(None, [*linked], None, js="(...values) => isx.begin(values)", **PRIVATE, **CHEAP)
    gr.on([component.change for component in linked], None, [*linked], None, js=remember, **CHEAP)

    opened = _connect_tabs(session, frame)
    for dependency in opened.values():
        dependency.then(**signal_move)
    context = Context(
        session=session,
        controls=controls,
        status=frame.status,
        tab=frame.tab,
        prompt=frame.prompt,
        refresh=refresh,
        downloads=Downloads(),
        opened=opened,
        prepared=prepared,
        measured=measured,
        released=released,
        live_outputs=[*always, *when_open],
        pinned_measured=[],
        panels=frame.panels,
    )

    _show_bias(controls, refresh)
    lesson.connect(controls, refresh)
    moves = [controls.sparsity.input, controls.cap.input, controls.estimator.input, controls.order.input]
    moves += [
        controls.recovery.input,
        controls.shapes.input,
        controls.bias.change,
        controls.layer.change,
        controls.locked.change,
    ]
    moves += [refresh.change, controls.pinned.change, move_signal.change]
    on_latest(moves, **move)
    released.append(on_latest(context.on_commit, **measure, api_name="measure_live"))

    on_latest([controls.model.change], **memory, api_name="memory")
    controls.model.change(None, None, frame.notice, js="() => ''", **PRIVATE, **CHEAP)
    after_preparing(controls.calibrate.click(**prepare, api_name="prepare"))
    order_set = controls.paper.click(lambda: "sequential", None, controls.order, **PRIVATE, **CHEAP)
    measure_by_button = {**measure, "fn": spread_settings(slider.measure, session, outputs=slider.MEASURED)}
    measured.append(order_set.then(**signal_move).then(**measure_by_button, api_name="measure"))
    pressed = gr.on([controls.train.click, frame.measure_here.click], **signal_move)
    measured.append(pressed.then(**measure_by_button, **PRIVATE))
    on_latest(
        [controls.recovery.change],
        fn=lambda recovery: gr.update(visible=recovery != NO_RECOVERY),
        inputs=controls.recovery,
        outputs=controls.train,
        **PRIVATE,
        **CHEAP,
    )
    controls.cancel.click(partial_handler(handlers.stop, session, [""]), None, None, api_name="halt", **CHEAP)
    return context


def _connect_tabs(session: Session, frame: Frame) -> dict[str, gr.events.Dependency]:
    """By tab id, the end of the event that opens the tab.

    The browser itself records the active tab, and one call at a time signals it: otherwise a late answer could leave
    the active tab without its content.
    """
    in_browser: dict[str, Any] = {"fn": None, **PRIVATE, **CHEAP}
    signals = {}
    for tab in frame.tabs.children:
        if isinstance(tab, gr.Tab):
            signals[str(tab.id)] = gr.Textbox(visible=False)
            tab.select(outputs=frame.tab, js=f"() => {json.dumps(tab.id)}", **in_browser)
    open_tab = partial_handler(handlers.open_tab, session, [*signals])
    on_latest([frame.tab.change], fn=open_tab, inputs=frame.tab, outputs=[*signals.values()], **PRIVATE, **CHEAP)
    return {tab: signal.change(js="() => []", **in_browser) for tab, signal in signals.items()}


def _show_bias(controls: Controls, refresh: gr.Textbox) -> None:
    """Synchronise the bias with its slider and its checkbox, in the browser alone."""
    bias, found, bias_slider, auto = controls.bias, controls.bias_found, controls.bias_slider, controls.bias_auto
    in_browser: dict[str, Any] = {"fn": None, **PRIVATE, **CHEAP}
    bias_slider.input(inputs=bias_slider, outputs=bias, js="(bias) => bias", **in_browser)
    set_bias = "(auto, bias) => [auto ? null : bias, String(Date.now())]"
    auto.input(inputs=[auto, bias_slider], outputs=[bias, refresh], js=set_bias, **in_browser)
    show_bias = "(bias, found) => [bias ?? found, (bias ?? null) === null]"
    gr.on([bias.change, found.change], inputs=[bias, found], outputs=[bias_slider, auto], js=show_bias, **in_browser)
