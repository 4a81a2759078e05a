"""The table of the frame's events and their handlers. Events of a single tab are connected in its package."""

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import gradio as gr

from ..gradio_compat.browser.on_latest import on_latest
from ..state.choices import AUTO, BUDGETS
from ..ui.handlers import LiveOutput, leave_unchanged
from . import handlers, link
from .context import HEAVY, PRIVATE, Context, every, in_browser, once, signal, tell

# How to listen, to which events, and the calls in sequence, as keyword arguments of gradio's listeners.
Row = tuple[Callable[..., gr.events.Dependency], Sequence[Any], Sequence[Mapping[str, Any]]]


def connect(page: gr.Blocks, context: Context) -> None:
    """Connect the events that several tabs share. Called inside the page's `gr.Blocks()`."""
    rows = [*_restoring(page, context), *_settings(context), *_tabs(context), *_bias(context), *_budget(page, context)]
    for listen, events, (first, *others) in rows:
        end = listen(events, **first)
        for other in others:
            end = end.then(**other)
    page.unload(context.call(handlers.stop, context.session, [""])["fn"])


def _restoring(page: gr.Blocks, context: Context) -> Iterator[Row]:
    """A link or a step of the lesson sets the controls; the model is loaded and calibrated."""
    session, controls, call, always = context.session, context.controls, context.call, context.always
    settings = {**controls.settings, "layer": controls.layer}
    linked = {**settings, "prompt": context.prompt, "pinned": controls.pinned}
    restored = {**linked, "tabs": context.tabs, "notice": context.notice}
    begun = signal()
    restore = call(link.restore, session, outputs=restored, api_name="restore")
    first = [live_output for live_output in context.when_open if live_output.tab == link.FIRST_TAB]
    shown, updated = _moved(context, first), [*always, *first]
    preview = call(handlers.preview, session, updated, outputs=shown, refuse=handlers.refuse_move, api_name="ratios")
    begin = in_browser("(...values) => isx.begin(values)", [*linked.values()], [begun, controls.more])
    remember = in_browser("(...values) => isx.remember(values)", [*linked.values()])
    prepared = {"status": context.status, "again": context.again}
    prepare = call(handlers.prepare, session, outputs=prepared, queue=HEAVY, api_name="prepare")
    fit = call(handlers.fit_layers, session, outputs={"layer": controls.layer}, refuse=leave_unchanged)
    memory = call(handlers.memory, session, outputs={"memory": controls.memory}, api_name="memory")
    minutes = call(handlers.minutes, session, outputs={"budget": controls.budget})
    step = call(link.begin_step, outputs={**settings, "refresh": context.refresh})
    model = controls.settings["model"]

    yield every, [page.load], [restore, preview, begin]
    yield every, [component.change for component in linked.values()], [remember]
    for events, options in (([begun.change], PRIVATE), ([controls.calibrate.click], {})):
        yield once, events, [prepare | options, fit, tell(context.prepared)]
    yield on_latest, [page.load, model.change], [memory, minutes]
    reset = [context.notice, controls.settings["estimator"]]
    yield every, [model.input], [in_browser(f"() => ['', '{AUTO}']", None, reset)]
    forward_step = 'addEventListener("isx-lesson", ({ detail }) => trigger("select", detail));'  # of assets/lesson/
    wire = gr.HTML("<i></i>", js_on_load=forward_step, elem_id="lesson-wire", apply_default_css=False)
    yield every, [wire.select], [step]


def _settings(context: Context) -> Iterator[Row]:
    """A moved control is shown, a committed setting measured."""
    session, controls, call = context.session, context.controls, context.call
    always, when_open = context.always, context.when_open
    measured = {"status": context.status, **context.texts}
    outputs = {**_moved(context, when_open), "again": context.again, "estimator": controls.settings["estimator"]}
    move = call(handlers.move, session, always, when_open, outputs=outputs, refuse=handlers.refuse_move)
    followed = {**measured, "again": context.again, "released": context.released}
    on_release = call(handlers.on_release, session, outputs=followed, queue=HEAVY)
    measure_again = call(handlers.measure_again, session, outputs=followed, queue=HEAVY)
    measure_live = call(handlers.measure_live, session, outputs=measured, queue=HEAVY, api_name="measure_live")
    prepared = {**followed, "measured": context.measured}
    on_prepared = call(handlers.on_prepared, session, outputs=prepared, queue=HEAVY)
    measure = call(handlers.measure, session, outputs=measured, queue=HEAVY, api_name="measure")
    halt = call(handlers.stop, session, [""], api_name="halt")
    fitted = {"status": context.status, "sparsity": controls.settings["sparsity"], "refresh": context.refresh}
    inputs: dict[str, Any] = {"size": controls.size, "context": controls.context}
    fit_size = call(handlers.fit_size, session, outputs=fitted, queue=HEAVY, api_name="fit_size", **inputs)
    sequential, pressed = signal(), signal()  # buttons that slice
    set_order = "() => ['sequential', String(Date.now())]"
    order = in_browser(set_order, None, [controls.settings["order"], sequential])
    shown = [context.refresh, context.again, context.prepared, sequential, pressed, *context.opened.values()]
    events = [*controls.moves, controls.pinned.change, controls.layer.change, *(one.change for one in shown)]

    # One listener for all moves, one call at a time: otherwise a late answer could replace that of a newer setting.
    yield on_latest, events, [move]
    yield on_latest, context.on_commit, [on_release]
    # Not with what is committed: that listener keeps an event that comes while it runs, and would measure after a stop.
    yield every, [context.again.change], [measure_again]
    yield every, [], [measure_live]  # for programs
    yield every, [context.prepared.change], [on_prepared]
    yield every, [controls.paper.click], [order]
    yield every, [controls.train.click, context.measure_here.click], [tell(pressed)]
    for button, options in ((sequential, PRIVATE), (pressed, {})):
        yield once, [button.change], [measure | options, tell(context.measured)]
    yield every, [controls.cancel.click], [halt]
    yield once, [controls.size.submit], [fit_size]


def _tabs(context: Context) -> Iterator[Row]:
    """The browser records the active tab; one call at a time signals it: a late answer could leave it empty."""
    for tab in context.tabs.children:
        if isinstance(tab, gr.Tab):
            yield every, [tab.select], [in_browser(f"() => {json.dumps(tab.id)}", None, context.tab)]
    open_tab = context.call(handlers.open_tab, context.session, [*context.opened], outputs=context.opened)
    yield on_latest, [context.tab.change], [open_tab]


def _bias(context: Context) -> Iterator[Row]:
    """Synchronise the bias with its slider and its checkbox, in the browser alone."""
    controls = context.controls
    bias, found = controls.settings["bias"], controls.bias_found
    bias_slider, auto = controls.bias_slider, controls.bias_auto
    set_bias = "(auto, bias) => [auto ? null : bias, String(Date.now())]"
    show_bias = "(bias, found) => [bias ?? found, (bias ?? null) === null]"
    yield every, [bias_slider.input], [in_browser("(bias) => bias", bias_slider, bias)]
    yield every, [auto.input], [in_browser(set_bias, [auto, bias_slider], [bias, context.refresh])]
    yield every, [bias.change, found.change], [in_browser(show_bias, [bias, found], [bias_slider, auto])]


def _budget(page: gr.Blocks, context: Context) -> Iterator[Row]:
    """A budget sets the calibration's sizes, in the browser alone, and is chosen while they are its own."""
    budget, names = context.controls.budget, ("sequences", "length", "samples")
    sizes = [context.controls.settings[name] for name in names]
    budgets = json.dumps({label: [getattr(make(), name) for name in names] for label, make in BUDGETS.items()})
    set_sizes = f"(budget) => ({budgets})[budget]"
    show = f"(...sizes) => Object.entries({budgets}).find(([, own]) => String(own) === String(sizes))?.[0] ?? null"
    yield every, [budget.input], [in_browser(set_sizes, budget, sizes)]
    yield every, [page.load, *(size.change for size in sizes)], [in_browser(show, sizes, budget)]


def _moved(context: Context, when_open: Sequence[LiveOutput] = ()) -> dict[str, Any]:
    """The outputs of `preview`, and of `move` those that are only updated while their tab is active."""
    before, after = (
        {name: output for live_output in some for name, output in live_output.named.items()}
        for some in (context.always, when_open)
    )
    return {**before, **context.texts, "bias_found": context.controls.bias_found, **after}
