"""Below the answers: next-token probabilities of both models, and a passage coloured by the loss increase per token."""

from __future__ import annotations

from functools import partial
from typing import NamedTuple

import gradio as gr

from ..assets import ASSETS
from ..frame.context import HEAVY, Context
from ..gradio_compat.browser.on_latest import on_latest
from ..i18n.language import LazyString, gettext, lazy_gettext
from ..jobs import limits
from ..ui.explainers import fold
from . import handlers
from .models import Columns

SAMPLE = (
    "The Moon is the only natural satellite of the Earth. It orbits at an average distance of 384,400 kilometres, "
    "about thirty times the diameter of the Earth. Its gravity raises the tides of the sea, and since its rotation is "
    "bound to its orbit, it always shows the same side to us. The first people to walk on it were Neil Armstrong and "
    "Buzz Aldrin, in July 1969."
)


class PassagePanel(NamedTuple):
    """The section's components."""

    candidates: gr.HTML
    text: gr.Textbox
    score: gr.Button
    scored: gr.HTML


def build() -> PassagePanel:
    """Next tokens, and a passage to score. Called inside a `gr.Tab`."""
    placeholder = LazyString(
        lambda: f'<p class="isx-quiet">{gettext("Shown as soon as the sliced model is ready.")}</p>'
    )
    next_tokens_heading = LazyString(lambda: f"<h3>{gettext('Next-token probabilities')}</h3>")
    passage_heading = LazyString(lambda: f"<h3>{gettext('Loss increase per token')}</h3>")
    with gr.Column(elem_classes="isx-stop"):
        gr.HTML(next_tokens_heading, apply_default_css=False, elem_classes="isx-heading")
        candidates = gr.HTML(placeholder, elem_id="next-tokens", apply_default_css=False)
    fold("next")
    with gr.Column(elem_classes="isx-stop"):
        gr.HTML(passage_heading, apply_default_css=False, elem_classes="isx-heading")
        scored = gr.HTML(
            placeholder,
            js_on_load=(ASSETS / "passage.js").read_text(encoding="utf-8"),
            elem_id="passage",
            apply_default_css=False,
        )
    with gr.Row(elem_id="passage-text"):
        max_length = limits.PASSAGE.value
        text = gr.Textbox(
            SAMPLE, label=lazy_gettext("Your own passage"), lines=3, max_lines=10, max_length=max_length, scale=6
        )
        score = gr.Button(lazy_gettext("Score tokens"), size="md", elem_id="score", scale=1, min_width=120)
    fold("passage")
    return PassagePanel(candidates, text, score, scored)


def connect(
    panel: PassagePanel, columns: Columns, raw: gr.Checkbox, answered: gr.events.Dependency, context: Context
) -> None:
    """Attach the section's handlers. `answered` is the end of an answer; the prompt may have changed since."""
    status, text = {"status": context.status}, panel.text
    candidates, scored = status | {"candidates": panel.candidates}, status | {"scored": panel.scored}
    call = partial(context.call, queue=HEAVY)
    next_tokens = call(handlers.next_tokens, columns, outputs=candidates, api_name="next_tokens", raw=raw)
    answered.then(**next_tokens)
    panel.score.click(**call(handlers.passage, columns, outputs=scored, api_name="passage", passage=text))
    outputs = candidates | scored
    after_slice = call(handlers.after_slice, columns, outputs=outputs, tab="compare", raw=raw, sample=text)
    on_latest([context.measured.change, context.opened["compare"].change], **after_slice)
