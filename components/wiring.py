"""Which event calls which handler. Cheap answers skip the queue; all heavy work shares one lane, one job at a time."""

from __future__ import annotations

import gradio as gr

from components.compare_panel import ComparePanel
from components.controls_panel import Controls
from components.handlers import Handlers, flat
from components.ratios_panel import RatiosPanel

HEAVY = {"concurrency_id": "heavy", "concurrency_limit": 1, "show_progress": "hidden"}
CHEAP = {"queue": False, "show_progress": "hidden"}


def connect(
    handlers: Handlers,
    controls: Controls,
    ratios: RatiosPanel,
    compare: ComparePanel,
    tabs: gr.Tabs,
    status: gr.HTML,
    headline: gr.HTML,
    removed: gr.HTML,
) -> None:
    """Attach every handler. Called inside the `gr.Blocks()` that holds the components."""
    page = gr.context.Context.root_block
    texts = [controls.readout, headline, removed, compare.perplexity]
    shown = [ratios.ratios, ratios.importances, *texts]
    with_layer = [*controls.settings, controls.layer]
    preview = dict(fn=flat(handlers.preview), inputs=with_layer, outputs=shown, **CHEAP)
    measure = dict(fn=flat(handlers.measure_live), inputs=with_layer, outputs=[status, *texts], **HEAVY)

    kept = [*with_layer, compare.prompt]
    opened = page.load(handlers.restore, None, [*kept, tabs], api_name="restore", **CHEAP)
    opened = opened.then(**preview, api_visibility="private").then(
        flat(handlers.prepare), controls.settings, status, api_visibility="private", **HEAVY
    )
    opened.then(**preview, api_visibility="private").then(**measure, api_visibility="private")
    page.load(handlers.memory, controls.model, controls.memory, api_visibility="private", **CHEAP)

    dragged = [
        controls.sparsity.input,
        controls.bias.input,
        controls.cap.input,
        controls.estimator.input,
        controls.order.input,
        controls.layer.change,
    ]
    gr.on(dragged, **preview, trigger_mode="always_last", api_name="ratios")
    let_go = [
        controls.sparsity.release,
        controls.bias.release,
        controls.cap.release,
        controls.estimator.input,
        controls.order.input,
    ]
    gr.on(let_go, **measure, trigger_mode="always_last", api_name="measure_live")
    for chart in (ratios.ratios, ratios.importances):
        chart.select(handlers.choose_layer, None, controls.layer, api_visibility="private", **CHEAP)

    controls.model.change(handlers.memory, controls.model, controls.memory, api_name="memory", **CHEAP)
    controls.calibrate.click(flat(handlers.prepare), controls.settings, status, api_name="prepare", **HEAVY).then(
        **preview, api_visibility="private"
    ).then(**measure, api_visibility="private")
    controls.paper.click(lambda: "sequential", None, controls.order, api_visibility="private", **CHEAP).then(
        **preview, api_visibility="private"
    ).then(flat(handlers.measure), with_layer, [status, *texts], api_name="slice_as_in_the_paper", **HEAVY)
    controls.cancel.click(handlers.halt, None, status, api_name="halt", **CHEAP)

    asking = [*controls.settings, compare.prompt, compare.tokens, compare.temperature, compare.seed]
    gr.on(
        [compare.generate.click, compare.prompt.submit],
        flat(handlers.answer),
        asking,
        [status, *compare.answers],
        api_name="answer",
        **HEAVY,
    )
    compare.stop.click(handlers.halt, None, status, api_name="stop", **CHEAP)

    remember = "(...values) => window.isxRemember(values)"
    gr.on([component.change for component in kept], None, kept, None, js=remember, **CHEAP)
