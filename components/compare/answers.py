"""Three models answer one prompt in turn, token by token, each compared with the dense one."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from functools import partial

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from components.compare.models import Columns
from components.compare.views import COLUMNS, PINNED, Answer, Question
from components.i18n.language import lazy_gettext
from components.jobs.job import Job, Shared
from components.jobs.status import Status
from components.jobs.turns import Urgency
from components.state.request import Request
from intraslice.core.errors import NumericalError, UserError
from intraslice.diagnostics.first_divergence import first_divergence
from intraslice.evaluation.generation import HALF, Sampling, answer_text, end_tokens, stream_tokens

Answers = Mapping[str, Answer]
TURN = 0.4  # seconds that models are made for, between two tokens of the columns that answer


def answer(
    columns: Columns, request: Request, question: Question, client: str, pinned: Request | None = None
) -> Iterator[Status | Answers]:
    """All columns' answers whenever one has grown, and what is being done; ends with a ready or an error status.

    No column waits for a model that another needs: the dense one not even for the calibration.
    """
    work = partial(write_answers, columns=columns, request=request, question=question, pinned=pinned)
    yield from columns.session.jobs.run(client, "answer", work, urgency=Urgency.FIRST)


def write_answers(
    job: Job, columns: Columns, request: Request, question: Question, pinned: Request | None = None
) -> Answers:
    """What `answer` does, and the whole answers. Raises UserError for an empty prompt."""
    if not question.prompt.strip():
        raise UserError(lazy_gettext("The prompt is empty. Enter some text."))
    sampling = Sampling(question.tokens, question.temperature, question.seed, chat=not question.raw)
    loaded = columns.dense(job, request)
    board = Board(job, loaded.tokenizer, question.prompt, sampling)
    board.begin("dense", loaded.model)
    wanted = {name: (request, name) for name in COLUMNS if name != "dense"}
    if pinned is not None:
        wanted[PINNED] = pinned, "intraslice"
    with ExitStack() as stack:
        models = {name: stack.enter_context(_begin_model(job, columns, *what)) for name, what in wanted.items()}
        for name in models:
            board.show_later(name)
        job.emit(Status(lazy_gettext("Answering")))
        while models or board.running:
            for name in list(models):  # one after the other; the columns that have theirs go on meanwhile
                try:
                    if not models[name].wait(TURN if board.running else math.inf):
                        break
                    board.begin(name, models.pop(name).result())
                    job.emit(Status(lazy_gettext("Answering")))
                except (UserError, NumericalError) as problem:
                    board.refuse(name, str(problem))
            board.write_tokens()
    job.emit(columns.session.ready(request))
    return board.answers


def _begin_model(job: Job, columns: Columns, request: Request, name: str) -> Shared[PreTrainedModel]:
    """Begin to make a column's model by what the calibration has seen so far."""
    key = ("column", request, name)
    return job.begin(key, lambda job: columns.model(job, request, name, whole=False))


class Board:
    """The columns while they are written. Models take turns, a token each, so none waits for another's last word."""

    def __init__(self, job: Job, tokenizer: PreTrainedTokenizerBase, prompt: str, sampling: Sampling) -> None:
        self._job = job
        self._tokenizer, self._prompt, self._sampling = tokenizer, prompt, sampling
        self.running: dict[str, tuple[PreTrainedModel, Iterator[int]]] = {}
        self._tokens: defaultdict[str, list[int]] = defaultdict(list)
        self._answers = {name: Answer() for name in COLUMNS}

    @property
    def answers(self) -> Answers:
        """All columns as they are now."""
        return dict(self._answers)

    def show_later(self, name: str) -> None:
        """Say that a column's model is still to be made."""
        self._show(name, Answer(state="later"))

    def refuse(self, name: str, problem: str) -> None:
        """Say in words why a column has no answer."""
        self._show(name, Answer(state="refused", problem=problem))

    def begin(self, name: str, model: PreTrainedModel) -> None:
        """Let a column answer."""
        stream = stream_tokens(model, self._tokenizer, self._prompt, self._sampling, pause=self._job.checkpoint)
        self.running[name] = model, stream

    def write_tokens(self) -> None:
        """A token for every column that answers; shows all columns after each. Raises UserError for a bad prompt."""
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
