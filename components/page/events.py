"""Which event calls which handler. Cheap answers skip the queue; all heavy work shares one lane, one job at a time."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import gradio as gr

from components.page.context import CHEAP, HEAVY, PRIVATE, Page
from components.page.controls import Controls
from components.page.handlers import Handlers
from components.ratios.panel import RatiosPanel
from components.ui.downloads import Outbox
from components.ui.handlers import Follower, flat

if TYPE_CHECKING:  # it imports this file
    from components.compare.panel import ComparePanel


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
