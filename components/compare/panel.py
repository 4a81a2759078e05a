"""The Compare tab: several models answer one prompt side by side, with the costs of each."""

from __future__ import annotations

from functools import partial
from typing import Any, NamedTuple

import gradio as gr

from intraslice.core import checks

from ..frame.context import HEAVY, Context
from ..frame.handlers import stop
from ..gradio_compat.browser.on_latest import on_latest
from ..gradio_compat.signatures import partial_handler
from ..i18n.language import LazyString, gettext, lazy_gettext
from ..jobs import limits
from ..state.request import Request
from ..state.session import Session
from ..state.settings import PROMPT
from ..ui.handlers import LiveOutput
from . import device_panel, handlers, html, passage_panel
from .device_panel import DevicePanel
from .models import Columns
from .passage_panel import PassagePanel
from .views import COLUMNS, OTHER, PINNED

EXAMPLES = [
    PROMPT,
    "Write two sentences about the moon.",
    "What is the capital of France, and what is it known for?",
    "Explain to a child what a magnet does.",
]
# Screen readers announce an answer once it is complete, not at every token.
ARIA_LIVE_JS = """element.setAttribute("aria-live", "polite");
const settle = () => element.setAttribute("aria-busy", String(Boolean(element.querySelector("[aria-busy]"))));
watch("value", settle);"""


class ComparePanel(NamedTuple):
    """The tab's components, and the models that it compares."""

    columns: Columns
    prompt: gr.Textbox
    generate: gr.Button
    stop: gr.Button
    raw: gr.Checkbox
    tokens: gr.Slider
    temperature: gr.Slider
    seed: gr.Number
    other: gr.Textbox
    answers: dict[str, gr.HTML]  # by column
    costs: dict[str, gr.HTML]  # by column; and their protocol
    perplexity: gr.HTML
    passage: PassagePanel
    device: DevicePanel


def build(session: Session, first: Request) -> ComparePanel:
    """Prompt, answers and their costs. Called inside a `gr.Tab`."""
    answers, costs = {}, {}
    with gr.Column(elem_classes="isx-stop"):
        with gr.Row(equal_height=True, elem_id="asking"):
            max_length = limits.PROMPT.value
            prompt = gr.Textbox(
                PROMPT,
                label=lazy_gettext("Prompt"),
                lines=2,
                max_lines=6,
                max_length=max_length,
                scale=6,
                elem_id="prompt",
            )
            with gr.Column(scale=1, min_width=120):
                generate = gr.Button(lazy_gettext("Generate"), variant="primary", elem_id="generate")
                stop = gr.Button(lazy_gettext("Stop"), elem_id="stop")
        gr.Examples([[example] for example in EXAMPLES], [prompt], label=lazy_gettext("Examples"), elem_id="examples")
        with gr.Row(elem_id="answers"):
            for name in (*COLUMNS, PINNED, OTHER):
                empty = "" if name == OTHER else LazyString(partial(html.answer, name))
                answers[name] = gr.HTML(
                    empty, js_on_load=ARIA_LIVE_JS, elem_id=f"{name}-answer", apply_default_css=False
                )
                costs[name] = gr.HTML(elem_id=f"{name}-cost", apply_default_css=False)
        perplexity = gr.HTML(elem_id="perplexity", apply_default_css=False)
        costs["protocol"] = gr.HTML(elem_id="cost-protocol", apply_default_css=False)
        gr.HTML(LazyString(lambda: f"<h3>{gettext('Options')}</h3>"), apply_default_css=False)
        with gr.Row(elem_id="sampling"):
            slider = partial(gr.Slider, min_width=160, buttons=[])
            tokens = slider(8, 256, 64, step=8, label=lazy_gettext("Maximum new tokens"), elem_id="new-tokens")
            temperature = slider(
                0, 1.5, 0, step=0.1, label=lazy_gettext("Temperature (0: greedy)"), elem_id="temperature"
            )
            seed = gr.Number(
                0,
                label=lazy_gettext("Seed"),
                precision=0,
                minimum=0,
                maximum=checks.MAX_INTEGER,
                min_width=90,
                scale=0,
                elem_id="sample-seed",
            )
            raw = gr.Checkbox(
                False,
                label=lazy_gettext("Raw completion, no chat template"),
                elem_id="raw",
                container=False,
                min_width=200,
            )
        other = gr.Textbox(
            "",
            label=lazy_gettext("Another model in a column of its own"),
            placeholder=lazy_gettext("A model with the same tokenizer, such as HuggingFaceTB/SmolLM2-360M-Instruct"),
            info=lazy_gettext("It reads the prompt as the dense model does, with the same chat template."),
            max_length=limits.NAME.value,
            elem_id="other-model",
        )
        device = device_panel.build()
    return ComparePanel(
        columns=Columns(session),
        prompt=prompt,
        generate=generate,
        stop=stop,
        raw=raw,
        tokens=tokens,
        temperature=temperature,
        seed=seed,
        other=other,
        answers=answers,
        costs={name: costs[name] for name in (*COLUMNS, "protocol", PINNED, OTHER)},  # as in the endpoint's answer
        perplexity=perplexity,
        passage=passage_panel.build(),
        device=device,
    )


def connect(panel: ComparePanel, context: Context) -> None:
    """Attach the tab's handlers."""
    columns, call, pinned = panel.columns, context.call, context.controls.pinned
    status: dict[str, Any] = {"status": context.status}
    other: dict[str, Any] = {"other": panel.other}
    sampling: dict[str, Any] = {"tokens": panel.tokens, "temperature": panel.temperature, "sample_seed": panel.seed}
    answer = call(
        handlers.answer,
        columns,
        outputs=status | panel.answers,
        queue=HEAVY,
        api_name="answer",
        raw=panel.raw,
        **sampling,
        **other,
    )
    # A prompt that is sent during an answer is answered after it.
    answered = on_latest([panel.generate.click, panel.prompt.submit], **answer)
    costs = call(handlers.costs, columns, outputs=status | panel.costs, queue=HEAVY, api_name="costs", **other)
    answered.then(**costs)
    stopped = ["answer", "next tokens", "costs"]  # an answer, and what follows it
    panel.stop.click(**call(stop, columns.session, stopped))

    cached_costs = partial_handler(handlers.cached_costs, columns)
    live_costs = LiveOutput("compare", cached_costs, panel.costs, inputs=other)
    measured = [signal.change for signal in (pinned, context.measured, context.released)]
    context.subscribe(live_costs, [*context.on_commit, *measured])
    pinned.change(**call(_empty_column, outputs={PINNED: panel.answers[PINNED]}))
    named = {"answer": panel.answers[OTHER], "cost": panel.costs[OTHER]}
    refuse, shown = handlers.refuse_other, panel.answers[OTHER]
    name_other = call(handlers.name_other, columns, outputs=named, refuse=refuse, shown=shown, **other)
    on_latest([panel.other.submit, panel.other.blur], **name_other)
    device_panel.connect(panel.device, context)
    passage_panel.connect(panel.passage, columns, panel.raw, answered, context)


def _empty_column() -> str:
    return html.answer(PINNED)
