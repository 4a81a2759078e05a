"""Below the answers: next-token probabilities of both models, and a passage coloured by the loss increase per token."""

from collections.abc import Callable
from functools import partial
from typing import Any

import gradio as gr

from .. import limits
from ..frame.context import HEAVY, Context, every
from ..i18n.language import lazy_gettext
from ..jobs.job import Job
from ..jobs.status import Status
from ..state.request import Request
from ..state.session import Session
from ..ui import formatting
from ..ui.explainers import fold, heading, note, paragraph
from ..ui.handlers import Updates, status_line
from ..ui.scripts import on_load
from . import answers, html
from .models import Columns

SAMPLE = (
    "The Moon is the only natural satellite of the Earth. It orbits at an average distance of 384,400 kilometres, "
    "about thirty times the diameter of the Earth. Its gravity raises the tides of the sea, and since its rotation is "
    "bound to its orbit, it always shows the same side to us. The first people to walk on it were Neil Armstrong and "
    "Buzz Aldrin, in July 1969."
)
NOTHING = lazy_gettext("Shown as soon as the sliced model is ready.")
Work = Callable[[Job], Any]


class PassagePanel:
    """The section's components, created inside a `gr.Tab`."""

    def __init__(self) -> None:
        with gr.Column(elem_classes="isx-stop"):
            heading(lazy_gettext("Next-token probabilities"), elem_classes="isx-heading")
            self.candidates = note(NOTHING, elem_id="next-tokens")
        fold("next")
        with gr.Column(elem_classes="isx-stop"):
            heading(lazy_gettext("Loss increase per token"), elem_classes="isx-heading")
            self.scored = note(NOTHING, elem_id="passage", js_on_load=on_load("passage"))
        with gr.Row(elem_id="passage-text"):
            label, length = lazy_gettext("Your own passage"), limits.PASSAGE.value
            self.text = gr.Textbox(SAMPLE, label=label, lines=3, max_lines=10, max_length=length, scale=6)
            label = lazy_gettext("Score tokens")
            self.score = gr.Button(label, size="md", elem_id="score", scale=1, min_width=120)
        fold("passage")


def connect(
    panel: PassagePanel, columns: Columns, raw: gr.Checkbox, answered: gr.events.Dependency, context: Context
) -> None:
    """Attach the section's handlers. `answered` is the end of an answer; the prompt may have changed since."""
    call, status = partial(context.call, queue=HEAVY), {"status": context.status}
    candidates, scored = {"candidates": panel.candidates}, {"scored": panel.scored}
    answered.then(**call(next_tokens, columns, outputs=status | candidates, api_name="next_tokens", raw=raw))
    panel.score.click(**call(passage, columns, outputs=status | scored, api_name="passage", passage=panel.text))
    outputs = status | candidates | scored
    scores = call(after_slice, columns, outputs=outputs, tab="compare", raw=raw, sample=panel.text)
    every([signal.change for signal in (context.measured, context.released, context.opened["compare"])], **scores)


def next_tokens(columns: Columns, request: Request, prompt: str, raw: bool, client: str) -> Updates:
    """The most likely first tokens of an answer, dense and IntraSlice; yields status and table (HTML)."""
    yield {}
    if not columns.has_stopped.get(client):  # its last answer
        yield from _next_tokens(columns, request, prompt, raw, client)


def passage(columns: Columns, request: Request, passage: str, client: str) -> Updates:
    """Score a text: colour each token by its loss increase through slicing; yields status and passage (HTML)."""
    work = partial(answers.score_tokens, columns=columns, request=request, text=passage)
    draw = partial(html.passage, percent=request.settings.sparsity)
    yield from _results(columns.session, request, client, "passage", work, "scored", draw)


def after_slice(columns: Columns, request: Request, prompt: str, raw: bool, sample: str, client: str) -> Updates:
    """Next tokens and passage, if the slice is ready, else none; yields status and both (HTML)."""
    if columns.session.is_calibrated(request) and columns.session.is_sliced(request):
        yield from _next_tokens(columns, request, prompt, raw, client)
        yield from passage(columns, request, sample, client)
    else:
        yield dict.fromkeys(("candidates", "scored"), paragraph(NOTHING))


def _next_tokens(columns: Columns, request: Request, prompt: str, raw: bool, client: str) -> Updates:
    work = partial(answers.next_tokens, columns=columns, request=request, prompt=prompt, raw=raw)
    draw = partial(html.candidates, prompt=prompt)
    yield from _results(columns.session, request, client, "next tokens", work, "candidates", draw)


def _results(
    session: Session, request: Request, client: str, kind: str, work: Work, output: str, draw: Callable[[Any], str]
) -> Updates:
    """The statuses of a job, and what it returns, drawn in `output`; an error is both."""
    ready = partial(session.ready, request)
    for event in session.jobs.run(client, kind, lambda job: job.emit(work(job)), ready=ready, request=request):
        if isinstance(event, Status):
            problem = {output: formatting.problem(ValueError(event.text))} if event.kind == "error" else {}
            yield {"status": status_line(event)} | problem
        else:
            yield {output: draw(event)}
