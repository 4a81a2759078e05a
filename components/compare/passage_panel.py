"""Below the answers: next-token probabilities of both models, and a passage coloured by the loss increase per token."""

from __future__ import annotations

from typing import NamedTuple

import gradio as gr

from .. import limits
from ..frame.context import HEAVY, PRIVATE, Context
from ..i18n.language import LazyString, gettext, lazy_gettext
from ..ui.explainers import fold
from ..ui.handlers import only_if_active, spread_settings, unchanged
from ..ui.scripts import on_load
from . import handlers
from .handlers import AfterSlice, Result
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
            js_on_load=on_load("passage"),
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
    settings, status = context.controls.settings, context.status
    inputs = [*settings, context.prompt, raw]
    candidates, scored = [*Result(status, panel.candidates)], [*Result(status, panel.scored)]
    answered.then(spread_settings(handlers.next_tokens, columns), inputs, candidates, api_name="next_tokens", **HEAVY)
    panel.score.click(
        spread_settings(handlers.passage, columns), [*settings, panel.text], scored, api_name="passage", **HEAVY
    )
    outputs = AfterSlice(status, panel.candidates, panel.scored)
    after_slice = only_if_active("compare", unchanged(AfterSlice), handlers.after_slice, columns)
    for end in (*context.measured, context.opened["compare"]):
        end.then(after_slice, [*inputs, panel.text, context.tab], [*outputs], **PRIVATE, **HEAVY)
