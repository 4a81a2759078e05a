"""The Compare tab: the dense and the sliced model answer one prompt side by side, with perplexity and its protocol."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import gradio as gr

from components import wording
from components.views import Answers, Settings, Status

PROMPT = "Why does it rain?"
EXAMPLES = [
    PROMPT,
    "Write two sentences about the moon.",
    "What is the capital of France, and what is it known for?",
    "Explain to a child what a magnet does.",
]


class ComparePanel(NamedTuple):
    """The tab's components."""

    prompt: gr.Textbox
    generate: gr.Button
    stop: gr.Button
    tokens: gr.Slider
    temperature: gr.Slider
    seed: gr.Number
    dense: gr.Textbox
    sliced: gr.Textbox
    dense_note: gr.HTML
    sliced_note: gr.HTML
    perplexity: gr.HTML

    @property
    def answers(self) -> list[gr.components.Component]:
        """Outputs of `answer`."""
        return [self.dense, self.sliced, self.dense_note, self.sliced_note]


def build() -> ComparePanel:
    """Prompt, two answers, perplexity. Called inside a `gr.Tab`."""
    with gr.Row(equal_height=True, elem_id="asking"):
        prompt = gr.Textbox(PROMPT, label="Prompt", lines=2, max_lines=6, scale=6, elem_id="prompt")
        with gr.Column(scale=1, min_width=120):
            generate = gr.Button("Generate", variant="primary", elem_id="generate")
            stop = gr.Button("Stop", elem_id="stop")
    gr.Examples([[example] for example in EXAMPLES], [prompt], label="Try")
    with gr.Row(elem_id="answers"):
        with gr.Column(min_width=280):
            dense = gr.Textbox(
                label="Dense",
                placeholder="The dense model's answer; press Generate",
                lines=8,
                max_lines=24,
                interactive=False,
                elem_id="dense-answer",
            )
            dense_note = gr.HTML(apply_default_css=False)
        with gr.Column(min_width=280):
            sliced = gr.Textbox(
                label="IntraSlice",
                placeholder="The sliced model's answer, at the sparsity above",
                lines=8,
                max_lines=24,
                interactive=False,
                elem_id="sliced-answer",
            )
            sliced_note = gr.HTML(apply_default_css=False)
    with gr.Accordion("Sampling", open=False), gr.Row():
        tokens = gr.Slider(8, 256, value=64, step=8, label="New tokens", min_width=160, buttons=[])
        temperature = gr.Slider(0, 1.5, value=0, step=0.1, label="Temperature (0: greedy)", min_width=160, buttons=[])
        seed = gr.Number(0, label="Seed", precision=0, minimum=0, min_width=100)
    gr.HTML("<h3>What it costs in perplexity</h3>", apply_default_css=False)
    perplexity = gr.HTML(elem_id="perplexity", apply_default_css=False)
    return ComparePanel(
        prompt, generate, stop, tokens, temperature, seed, dense, sliced, dense_note, sliced_note, perplexity
    )


def answer(
    session, settings: Settings, prompt: str, tokens: int, temperature: float, seed: int, visitor: str
) -> Iterator[tuple]:
    """Stream both answers: (status or None, dense, sliced, dense note, sliced note) as they grow."""
    for event in session.answer(settings, prompt, int(tokens), float(temperature), int(seed), visitor):
        if isinstance(event, Status):
            yield wording.status(event), gr.skip(), gr.skip(), gr.skip(), gr.skip()
        else:
            yield (gr.skip(), *_shown(event))


def _shown(event: Answers) -> tuple[str, str, str, str]:
    notes = wording.speed("dense", event.dense_speed), wording.speed("sliced", event.sliced_speed)
    return event.dense, event.sliced, *notes
