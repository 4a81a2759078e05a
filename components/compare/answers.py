"""Three models answer one prompt, one token each in turn; every answer is compared with the dense one."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from functools import partial

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from intraslice.core.errors import NumericalError, UserError
from intraslice.diagnostics.first_divergence import first_divergence
from intraslice.evaluation.generation import REPLACEMENT_CHARACTER, Sampling, answer_text, end_tokens, stream_tokens

from ..i18n.language import lazy_gettext
from ..jobs.job import Job, Shared
from ..jobs.status import Status
from ..jobs.turns import Urgency
from ..state.request import Request
from .models import Columns
from .views import COLUMNS, PINNED, Answer, Question

Answers = Mapping[str, Answer]
SLICING_SECONDS = 0.4  # of slicing between two tokens of the columns that already answer


def answer(
    columns: Columns, request: Request, question: Question, client: str, pinned: Request | None = None
) -> Iterator[Status | Answers]:
    """All columns' answers after every token, and the status; ends with a ready or an error status.

    No column waits for the model of another column; the dense column does not even wait for the calibration.
    """
    work = partial(write_answers, columns=columns, request=request, question=question, pinned=pinned)
    yield from columns.session.jobs.run(client, "answer", work, urgency=Urgency.FIRST)


def write_answers(
    job: Job, columns: Columns, request: Request, question: Question, pinned: Request | None = None
) -> Answers:
    """The work of `answer`, inside a job; returns the whole answers. Raises UserError for an empty prompt."""
    if not question.prompt.strip():
        raise UserError(lazy_gettext("The prompt is empty. Enter some text."))
    sampling = Sampling(question.tokens, question.temperature, question.seed, chat=not question.raw)
    loaded = columns.dense(job, request)
    decoder = InterleavedDecoder(job, loaded.tokenizer, question.prompt, sampling)
    decoder.start("dense", loaded.model)
    sources = {name: (request, name) for name in COLUMNS if name != "dense"}
    if pinned is not None:
        sources[PINNED] = pinned, "intraslice"
    with ExitStack() as stack:
        models = {name: stack.enter_context(_begin_model(job, columns, *source)) for name, source in sources.items()}
        for name in models:
            decoder.show_pending(name)
        job.emit(Status(lazy_gettext("Answering")))
        while models or decoder.running:
            for name in list(models):  # slice one model at a time; columns that have a model continue
                try:
                    if not models[name].wait(SLICING_SECONDS if decoder.running else math.inf):
                        break
                    decoder.start(name, models.pop(name).result())
                    job.emit(Status(lazy_gettext("Answering")))
                except (UserError, NumericalError) as problem:
                    decoder.refuse(name, str(problem))
            decoder.step()
    job.emit(columns.session.ready(request))
    return decoder.answers


def _begin_model(job: Job, columns: Columns, request: Request, name: str) -> Shared[PreTrainedModel]:
    """Start slicing a column's model, from the sequences that the calibration has read so far."""
    key = ("column", request, name)
    return job.begin(key, lambda job: columns.model(job, request, name, full_calibration=False))


class InterleavedDecoder:
    """Decodes the columns in turn, one token each, so that no column waits for another to end."""

    def __init__(self, job: Job, tokenizer: PreTrainedTokenizerBase, prompt: str, sampling: Sampling) -> None:
        self._job = job
        self._tokenizer, self._prompt, self._sampling = tokenizer, prompt, sampling
        self.running: dict[str, tuple[PreTrainedModel, Iterator[int]]] = {}
        self._tokens: defaultdict[str, list[int]] = defaultdict(list)
        self._answers = {name: Answer() for name in COLUMNS}

    @property
    def answers(self) -> Answers:
        """The answers so far."""
        return dict(self._answers)

    def show_pending(self, name: str) -> None:
        """Show that a column's model is not sliced yet."""
        self._show(name, Answer(state="pending"))

    def refuse(self, name: str, problem: str) -> None:
        """Show why a column has no answer."""
        self._show(name, Answer(state="refused", problem=problem))

    def start(self, name: str, model: PreTrainedModel) -> None:
        """Start a column's answer."""
        stream = stream_tokens(model, self._tokenizer, self._prompt, self._sampling, pause=self._job.checkpoint)
        self.running[name] = model, stream

    def step(self) -> None:
        """Decode one token per running column; shows all columns after each. Raises UserError for a bad prompt."""
        for name, (model, stream) in list(self.running.items()):
            try:
                token = next(stream)
            except StopIteration:
                del self.running[name]
                state = "ended" if self._tokens[name][-1:] and self._tokens[name][-1] in end_tokens(model) else "cut"
            else:
                self._tokens[name].append(token)
                state = "growing"
            self._show(name, self._view(name, state))

    def _show(self, name: str, answer: Answer) -> None:
        self._answers[name] = answer
        self._job.emit(self.answers)

    def _view(self, name: str, state: str) -> Answer:
        tokens, dense = self._tokens[name], self._tokens["dense"]
        text, count = answer_text(self._tokenizer, tokens), len(tokens)
        if state == "growing":
            text = text.rstrip(REPLACEMENT_CHARACTER)
        common = min(count, len(dense))  # compare only positions that both answers have reached
        divergence = first_divergence(self._tokenizer, dense[:common], tokens[:common])
        if divergence is None:
            return Answer(shared=text, count=count, state=state)
        start, end = self._length(tokens, divergence.position), self._length(tokens, divergence.position + 1)
        dense_token = answer_text(self._tokenizer, dense[divergence.position : divergence.position + 1])
        return Answer(text[:start], text[start:end], text[end:], count, state, divergence.position, dense_token)

    def _length(self, tokens: Sequence[int], count: int) -> int:
        return len(answer_text(self._tokenizer, tokens[:count]).rstrip(REPLACEMENT_CHARACTER))
