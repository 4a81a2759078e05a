"""Which event calls which handler. Cheap answers skip the queue; all heavy work shares one lane, one job at a time."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import gradio as gr

from components.page.controls import Controls
from components.page.handlers import Follower, Handlers, flat, in_view
from components.ratios.panel import RatiosPanel
from components.ui.downloads import Outbox

if TYPE_CHECKING:  # it imports this file
    from components.compare.panel import ComparePanel

HEAVY = {"concurrency_id": "heavy", "concurrency_limit": 1, "show_progress": "hidden"}
CHEAP = {"queue": False, "show_progress": "hidden"}
# A step of a longer answer, which has a name of its own elsewhere.
PRIVATE = {"api_visibility": "private", "api_name": "step"}


class Page(NamedTuple):
    """What a tab needs to wire itself to the rest of the page."""

    session: Any
    controls: Controls
    status: gr.HTML
    tab: gr.State  # the id of the tab in view
    opened: dict[str, gr.events.Dependency]  # a tab's id -> what follows when it is opened
    let_go: Sequence[Any]  # events after which settings rest
    prepared: Sequence[gr.events.Dependency]  # ends of what loads and calibrates
    measured: Sequence[gr.events.Dependency]  # ends of what slices and measures
    anew: gr.Textbox  # another value here, after a handler has set controls, does what dragging them would
    prompt: gr.Textbox
    outbox: Outbox

    def follow(self, follower: Follower, events: Sequence[Any]) -> None:
        """Let a tab in view follow these events, besides being up to date when it is opened."""
        self._attach(*follower, CHEAP, events, self.prepared)

    def afterwards(self, tab: str, handler: Callable[..., Any], outputs: Sequence[gr.components.Component]) -> None:
        """Call the slow `handler(settings, layer, request)` when a slice is there and `tab` is in view."""
        self._attach(tab, handler, outputs, HEAVY, [], self.measured)

    def catch_up(self, tab: str, handler: Callable, show: Callable, outputs: Sequence[gr.components.Component]) -> None:
        """When another layer comes into view call `handler`, which takes seconds, in a lane of its own; then `show`."""
        lane = {"concurrency_id": tab, "concurrency_limit": 2, "show_progress": "hidden"}
        first, then = self._call(tab, handler, [], lane), self._call(tab, show, outputs, CHEAP)
        gr.on(self.controls.layer.change, **first, trigger_mode="always_last").then(**then)
        for end in (*self.prepared, self.opened[tab]):
            end.then(**first).then(**then)

    def choosing(self, chart: gr.HTML) -> None:
        """Let a click on a layer of `chart` choose that layer everywhere."""
        chart.select(_clicked_layer, None, self.controls.layer, **PRIVATE, **CHEAP)

    def _attach(self, tab: str, handler: Callable, outputs: Sequence, how: dict, events: Sequence, ends: Sequence):
        call = self._call(tab, handler, outputs, how)
        if events:
            gr.on(events, **call, trigger_mode="always_last")
        for end in (*ends, self.opened[tab]):
            end.then(**call)

    def _call(self, tab: str, handler: Callable, outputs: Sequence, how: dict) -> dict[str, Any]:
        return {
            "fn": in_view(tab, handler, len(outputs)),
            "inputs": [*self.controls.settings, self.controls.layer, self.tab],
            "outputs": list(outputs),
            **PRIVATE,
            **how,
        }


def _clicked_layer(event: gr.EventData) -> int:
    return int(event.layer)


def connect(
    handlers: Handlers,
    controls: Controls,
    ratios: RatiosPanel,
    compare: ComparePanel,
    tabs: gr.Tabs,
    tab: gr.State,
    status: gr.HTML,
    headline: gr.HTML,
    removed: gr.HTML,
    followers: Sequence[Follower],
) -> Page:
    """Attach every handler that several tabs share. Called inside the `gr.Blocks()` that holds the components."""
    page = gr.context.Context.root_block
    texts = [controls.readout, headline, removed, compare.perplexity]
    with_layer = [*controls.settings, controls.layer]
    kept = [*with_layer, compare.prompt]
    shown = [ratios.ratios, ratios.importances, *texts, controls.bias_found]
    preview = {"fn": flat(handlers.preview), "inputs": with_layer, "outputs": shown, **CHEAP}
    move = {
        "fn": handlers.moving(followers),
        "inputs": [*with_layer, tab],
        "outputs": [*shown, *(output for follower in followers for output in follower.outputs)],
        **PRIVATE,
        **CHEAP,
    }
    prepare = {"fn": flat(handlers.prepare), "inputs": controls.settings, "outputs": status, **HEAVY}
    measure = {"fn": flat(handlers.measure_live), "inputs": with_layer, "outputs": [status, *texts], **HEAVY}
    measure_asked = {**measure, "fn": flat(handlers.measure)}
    fit_layers = {"fn": flat(handlers.fit_layers), "inputs": controls.settings, "outputs": controls.layer, **CHEAP}

    prepared, measured = [], []

    def after_preparing(ready: gr.events.Dependency) -> None:
        prepared.append(ready.then(**fit_layers, **PRIVATE).then(**move))
        measured.append(prepared[-1].then(**measure, **PRIVATE))

    opened = page.load(handlers.restore, None, [*kept, tabs, tab], api_name="restore", **CHEAP)
    after_preparing(opened.then(**preview, api_name="ratios").then(**prepare, **PRIVATE))
    page.load(handlers.memory, controls.model, controls.memory, **PRIVATE, **CHEAP)
    page.unload(handlers.leave)

    sliders = [controls.sparsity, controls.cap]
    radios = [controls.estimator.input, controls.order.input]
    anew = gr.Textbox(visible=False)  # a gr.State tells of no change outside the queue
    changed = [controls.locked.change, anew.change]
    # Only in the browser: the slider or the checkbox says what the bias is, and both show what it is.
    bias, found, slider, auto = controls.bias, controls.bias_found, controls.bias_slider, controls.bias_auto
    in_browser = {"fn": None, **PRIVATE, **CHEAP}
    slider.input(inputs=slider, outputs=bias, js="(bias) => bias", **in_browser)
    ticked = "(auto, bias) => [auto ? null : bias, String(Date.now())]"
    auto.input(inputs=[auto, slider], outputs=[bias, anew], js=ticked, **in_browser)
    shown_as = "(bias, found) => [bias ?? found, (bias ?? null) === null]"
    gr.on([bias.change, found.change], inputs=[bias, found], outputs=[slider, auto], js=shown_as, **in_browser)
    dragged = [*(one.input for one in sliders), *radios, bias.change, controls.layer.change, *changed]
    let_go = [*(one.release for one in sliders), *radios, slider.release, *changed]
    gr.on(dragged, **move, trigger_mode="always_last")
    measured.append(gr.on(let_go, **measure, trigger_mode="always_last", api_name="measure_live"))

    controls.model.change(handlers.memory, controls.model, controls.memory, api_name="memory", **CHEAP)
    after_preparing(controls.calibrate.click(**prepare, api_name="prepare"))
    ordered = controls.paper.click(lambda: "sequential", None, controls.order, **PRIVATE, **CHEAP)
    measured.append(ordered.then(**move).then(**measure_asked, api_name="measure"))
    controls.cancel.click(handlers.halt, None, status, api_name="halt", **CHEAP)

    remember = "(...values) => window.isxRemember(values)"
    gr.on([component.change for component in kept], None, kept, None, js=remember, **CHEAP)

    opened_tabs = {one.id: one.select(handlers.look_at(one.id), None, tab, **PRIVATE, **CHEAP) for one in tabs.children}
    for one in opened_tabs.values():
        one.then(**move)
    lists = let_go, prepared, measured
    shared = Page(handlers.session, controls, status, tab, opened_tabs, *lists, anew, compare.prompt, Outbox())
    for chart in (ratios.ratios, ratios.importances):
        shared.choosing(chart)
    return shared
