"""Three models answer one prompt in turn, token by token, each compared with the dense one."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Mapping, Sequence

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from components.compare.models import Columns
from components.compare.views import COLUMNS, Answer, Question
from components.session.settings import Settings, Status
from intraslice.diagnostics.first_divergence import first_divergence
from intraslice.errors import NumericalError, UserError
from intraslice.evaluation.generation import HALF, Sampling, answer_text, end_tokens, stream_tokens

Answers = Mapping[str, Answer]


def answer(columns: Columns, settings: Settings, question: Question, visitor: str) -> Iterator[Status | Answers]:
    """All columns' answers whenever one has grown, and what is being done; ends with a ready or an error status.

    While the cross-module model has to be made first, the other two do not wait for it.
    """
    jobs = columns.session.jobs
    job = jobs.start(visitor, live=False)
    yield from jobs.run(visitor, job, _answering(columns, settings, question, job.stop))


def _answering(
    columns: Columns, settings: Settings, question: Question, stop: threading.Event
) -> Iterator[Status | Answers]:
    if not question.prompt.strip():
        raise UserError("the prompt is empty; wanted some text to answer")
    sampling = Sampling(question.tokens, question.temperature, question.seed, chat=not question.raw)
    models = yield from columns.pair(settings)
    board = Board(columns.session.calibrated(settings).loaded.tokenizer, question.prompt, sampling, stop)
    late = False
    try:
        if late := not columns.has_cross(settings):
            yield board.later("crossmodule")
        else:
            models["crossmodule"] = yield from columns.cross(settings)
    except UserError as problem:
        yield board.refuse("crossmodule", str(problem))
    yield Status("Answering")
    yield from board.answer(models)
    if late:
        try:
            models = {"crossmodule": (yield from columns.cross(settings))}
        except NumericalError as problem:
            yield board.refuse("crossmodule", str(problem))
        else:
            yield Status("Answering")
            yield from board.answer(models)
    yield columns.session.ready(settings)


class Board:
    """The columns while they are written. Models take turns, a token each, so none waits for another's last word."""

    def __init__(
        self, tokenizer: PreTrainedTokenizerBase, prompt: str, sampling: Sampling, stop: threading.Event | None = None
    ) -> None:
        self._tokenizer, self._prompt, self._sampling, self._stop = tokenizer, prompt, sampling, stop
        self._tokens: dict[str, list[int]] = {name: [] for name in COLUMNS}
        self._answers = {name: Answer() for name in COLUMNS}

    def later(self, name: str) -> Answers:
        """Say that a column's model is still to be made."""
        self._answers[name] = Answer(state="later")
        return dict(self._answers)

    def refuse(self, name: str, problem: str) -> Answers:
        """Say in words why a column has no answer."""
        self._answers[name] = Answer(state="refused", problem=problem)
        return dict(self._answers)

    def answer(self, models: Mapping[str, PreTrainedModel]) -> Iterator[Answers]:
        """Let these columns answer to their end; all columns after each token. Raises UserError for a bad prompt."""
        running = {
            name: stream_tokens(model, self._tokenizer, self._prompt, self._sampling, self._stop)
            for name, model in models.items()
        }
        while running:
            for name in list(running):
                token = next(running[name], None)
                if token is None:
                    del running[name]
                    state = self._ending(name, models[name])
                else:
                    self._tokens[name].append(token)
                    state = "growing"
                self._answers[name] = self._view(name, state)
                yield dict(self._answers)

    def _ending(self, name: str, model: PreTrainedModel) -> str:
        if self._tokens[name][-1:] and self._tokens[name][-1] in end_tokens(model):
            return "ended"
        return "stopped" if self._stop is not None and self._stop.is_set() else "cut"

    def _view(self, name: str, state: str) -> Answer:
        tokens, dense = self._tokens[name], self._tokens["dense"]
        text, count = answer_text(self._tokenizer, tokens), len(tokens)
        if state == "growing":
            text = text.rstrip(HALF)
        common = min(count, len(dense))  # what is longer by now may yet turn out the same
        parting = first_divergence(self._tokenizer, dense[:common], tokens[:common])
        if parting is None:
            return Answer(same=text, count=count, state=state)
        start, end = self._length(tokens, parting.position), self._length(tokens, parting.position + 1)
        instead = answer_text(self._tokenizer, dense[parting.position : parting.position + 1])
        return Answer(text[:start], text[start:end], text[end:], count, state, parting.position, instead)

    def _length(self, tokens: Sequence[int], count: int) -> int:
        return len(answer_text(self._tokenizer, tokens[:count]).rstrip(HALF))
