"""Three models answer one prompt in turn, token by token, each compared with the dense one."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from components.compare.models import Columns
from components.compare.views import COLUMNS, PINNED, Answer, Question
from components.i18n.language import later
from components.jobs.generators import Waiting
from components.jobs.status import Status
from components.jobs.turns import Urgency
from components.state.settings import Settings
from intraslice.core.errors import NumericalError, UserError
from intraslice.diagnostics.first_divergence import first_divergence
from intraslice.evaluation.generation import HALF, Sampling, answer_text, end_tokens, stream_tokens

Answers = Mapping[str, Answer]
MAKING = 0.4  # seconds that models are made for, between two tokens of the columns that answer


def answer(
    columns: Columns, settings: Settings, question: Question, visitor: str, pinned: Settings | None = None
) -> Iterator[Status | Answers]:
    """All columns' answers whenever one has grown, and what is being done; ends with a ready or an error status.

    No column waits for a model that another needs: the dense one not even for the calibration.
    """
    work = answering(columns, settings, question, pinned)
    yield from columns.session.jobs.run(visitor, "answer", work, urgency=Urgency.FIRST)


def answering(
    columns: Columns, settings: Settings, question: Question, pinned: Settings | None = None
) -> Iterator[Status | Answers | Waiting]:
    """`answer` as a step of a longer job. Raises UserError for an empty prompt."""
    if not question.prompt.strip():
        raise UserError(later("the prompt is empty; wanted some text to answer"))
    sampling = Sampling(question.tokens, question.temperature, question.seed, chat=not question.raw)
    loaded = yield from columns.dense(settings)
    board = Board(loaded.tokenizer, question.prompt, sampling)
    board.begin("dense", loaded.model)
    making = {name: columns.model(settings, name, whole=False) for name in COLUMNS if name != "dense"}
    if pinned is not None:
        making[PINNED] = columns.model(pinned, "intraslice", whole=False)
    for name in making:
        yield board.later(name)
    yield Status(later("Answering"))
    while making or board.running:
        # Whoever answers goes on while the others' models are made, a token for every so many steps of that.
        until = time.monotonic() + MAKING
        while making:
            name = next(iter(making))
            try:
                yield next(making[name])
            except StopIteration as made:
                del making[name]
                board.begin(name, made.value)
                yield Status(later("Answering"))
            except (UserError, NumericalError) as problem:
                del making[name]
                yield board.refuse(name, str(problem))
            if board.running and time.monotonic() >= until:
                break
        yield from board.round()
    yield columns.session.ready(settings)


class Board:
    """The columns while they are written. Models take turns, a token each, so none waits for another's last word."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase, prompt: str, sampling: Sampling) -> None:
        self._tokenizer, self._prompt, self._sampling = tokenizer, prompt, sampling
        self.running: dict[str, tuple[PreTrainedModel, Iterator[int]]] = {}
        self._tokens: defaultdict[str, list[int]] = defaultdict(list)
        self._answers = {name: Answer() for name in COLUMNS}

    def later(self, name: str) -> Answers:
        """Say that a column's model is still to be made."""
        self._answers[name] = Answer(state="later")
        return dict(self._answers)

    def refuse(self, name: str, problem: str) -> Answers:
        """Say in words why a column has no answer."""
        self._answers[name] = Answer(state="refused", problem=problem)
        return dict(self._answers)

    def begin(self, name: str, model: PreTrainedModel) -> None:
        """Let a column answer."""
        self.running[name] = model, stream_tokens(model, self._tokenizer, self._prompt, self._sampling)

    def round(self) -> Iterator[Answers | Waiting]:
        """A token from every column that answers; all columns after each. Raises UserError for a bad prompt."""
        for name, (model, stream) in list(self.running.items()):
            try:
                token = next(stream)
            except StopIteration:
                del self.running[name]
                state = "ended" if self._tokens[name][-1:] and self._tokens[name][-1] in end_tokens(model) else "cut"
            else:
                self._tokens[name].append(token)
                state = "growing"
            self._answers[name] = self._view(name, state)
            yield dict(self._answers)

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
