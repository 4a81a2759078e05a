"""The models answer one prompt, one token each in turn; every answer is compared with the dense one.

Clients that ask the same share the tokens (`token_streams.py`).
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from functools import partial

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from intraslice.core import checks
from intraslice.core.errors import UserError
from intraslice.evaluation.answers import common_tokens, has_loop
from intraslice.evaluation.generation import REPLACEMENT_CHARACTER, Sampling, answer_text, prompt_tokens

from .. import limits
from ..i18n.language import lazy_gettext
from ..jobs.job import Job
from ..jobs.status import Status
from ..jobs.waiting import JobSemaphore
from ..state.request import DENSE, Request
from .models import CANNOT_ANSWER, Columns, encode_off_turn
from .token_streams import TokenStream, TokenStreams, stream_key
from .views import COLUMNS, OTHER, PINNED, Answer, Question

Answers = Mapping[str, Answer]
# Each keeps its sliced models in memory until it ends; the dense columns of the others go on meanwhile.
SLICED_ANSWERS = JobSemaphore(limits.MAX_SLICED_ANSWERS, lazy_gettext("Waiting for other answers to end"))


def answer(
    columns: Columns, request: Request, question: Question, client: str, pinned: Request | None = None, other: str = ""
) -> Iterator[Status | Answers]:
    """All columns' answers after every token, and the status; ends with a ready or an error status.

    No column waits for the model of another column; the dense column does not even wait for the calibration.
    """
    work = partial(write_answers, columns=columns, request=request, question=question, pinned=pinned, other=other)
    yield from columns.session.jobs.run(client, "answer", work, ready=partial(columns.session.ready, request))


def write_answers(
    job: Job, columns: Columns, request: Request, question: Question, pinned: Request | None = None, other: str = ""
) -> Answers:
    """The work of `answer`, inside a job; returns the whole answers. Raises UserError for an empty prompt."""
    checks.require_words("the prompt", question.prompt)
    sampling = Sampling(question.tokens, question.temperature, question.seed, chat=not question.raw)
    loaded = columns.dense(job, request)
    encode_off_turn(job, loaded.tokenizer, lambda: prompt_tokens(loaded.tokenizer, question.prompt, sampling.chat))
    decoder = InterleavedDecoder(job, columns.streams, loaded.tokenizer, question.prompt, sampling)

    def key(of: Request, name: str) -> str:
        if name == OTHER:  # never that of a page whose model it is: nobody has compared the tokenizers there
            identity = of.calibration._replace(model=other).identity
            named = of.slice_key(DENSE)._replace(method=f"{OTHER} {other} {identity}")
            return stream_key(named, loaded.tokenizer, question)
        method = name if of.slicing.sparsity else DENSE
        return stream_key(of.slice_key(method), loaded.tokenizer, question)

    def make(job: Job, of: Request, name: str) -> PreTrainedModel:
        if name == OTHER:
            return columns.other(job, of, other).model
        return columns.model(job, of, name, full_calibration=False)  # from the sequences read so far

    decoder.start("dense", loaded.model, key(request, DENSE))
    sources = {name: (request, name) for name in COLUMNS if name != DENSE}
    if pinned is not None:
        sources[PINNED] = pinned, "intraslice"
    if other:
        sources[OTHER] = request, OTHER
    # The model of a calibration that is still running depends on when it is sliced, so its answer is not shared.
    is_final = columns.session.is_calibrated
    keys = {name: key(*source) if name == OTHER or is_final(source[0]) else "" for name, source in sources.items()}
    for name in [name for name in sources if decoder.start_finished(name, keys[name])]:
        del sources[name]
    with SLICED_ANSWERS.requested() as has_place, ExitStack() as stack:
        models = {
            name: stack.enter_context(
                job.begin(("column", *source, other), partial(make, of=source[0], name=source[1]))
            )
            for name, source in sources.items()
        }
        for name in models:
            decoder.show_pending(name)
        job.emit(Status(lazy_gettext("Answering")))
        decoder.step()
        while models or decoder.running:
            # Another model is loaded without a place: that may take long, and it is in the cache of models anyway.
            can_slice = bool(models.keys() - {OTHER}) and has_place()
            ready = [name for name in models if can_slice or name == OTHER]
            if not ready and not decoder.running:
                SLICED_ANSWERS.wait(job)
                continue
            for name in ready:  # one model at a time; columns that have one continue
                try:
                    if not models[name].wait(limits.SLICING_SECONDS if decoder.running else math.inf):
                        break
                    model = models.pop(name).result()
                    # The key again, since it names the weights, which have been loaded only now.
                    decoder.start(name, model, keys[name] and key(*sources[name]))
                    job.emit(Status(lazy_gettext("Answering")))
                except CANNOT_ANSWER as problem:
                    decoder.refuse(name, str(problem))
            decoder.step()
    return decoder.answers


class InterleavedDecoder:
    """Decodes the columns in turn, one token each, so that no column waits for another to end."""

    def __init__(
        self, job: Job, streams: TokenStreams, tokenizer: PreTrainedTokenizerBase, prompt: str, sampling: Sampling
    ) -> None:
        self._job, self._streams = job, streams
        self._tokenizer, self._prompt, self._sampling = tokenizer, prompt, sampling
        self.running: dict[str, tuple[str, TokenStream]] = {}
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

    def start(self, name: str, model: PreTrainedModel, key: str) -> None:
        """Start a column's answer; without `key` it is not shared."""
        self.running[name] = key, self._streams.begin(key, model, self._tokenizer, self._prompt, self._sampling)

    def start_finished(self, name: str, key: str) -> bool:
        """Start a column whose answer is known already, without a model; returns whether it is."""
        stream = self._streams.finished(key)
        if stream is not None:
            self.running[name] = key, stream
        return stream is not None

    def step(self) -> None:
        """Decode one token per running column, or take all that others have decoded; shows all columns after each.

        Raises UserError for a bad prompt.
        """
        for name, (key, stream) in list(self.running.items()):
            tokens = self._tokens[name]
            try:
                has_more = stream.reach(self._job, len(tokens))
            except UserError as problem:
                if name != OTHER:
                    raise
                del self.running[name]  # its context may be shorter than that of the others
                self.refuse(name, str(problem))
                continue
            if has_more:
                tokens.extend(stream.tokens[len(tokens) :])
            elif name == "dense" or "dense" not in self.running:  # else it is compared with a longer dense answer later
                del self.running[name]
                self._streams.keep(key, stream)
            self._job.note_result()
            self._show(name, self._view(name, "growing" if has_more else stream.state))

    def _show(self, name: str, answer: Answer) -> None:
        self._answers[name] = answer
        self._job.emit(self.answers)

    def _view(self, name: str, state: str) -> Answer:
        tokens, dense = self._tokens[name], self._tokens["dense"]
        text, count = answer_text(self._tokenizer, tokens), len(tokens)
        if state == "growing":
            text = text.rstrip(REPLACEMENT_CHARACTER)
        common = min(count, len(dense))  # compare only positions that both answers have reached
        position = common_tokens(dense[:common], tokens[:common])
        if position == common:
            identical = state != "growing" and common == count
            return Answer(shared=text, count=count, state=state, loops=has_loop(tokens), identical=identical)
        start, end = self._length(tokens, position), self._length(tokens, position + 1)
        dense_token = answer_text(self._tokenizer, dense[position : position + 1])
        parts = text[:start], text[start:end], text[end:]
        return Answer(*parts, count, state, position, dense_token, loops=has_loop(tokens))

    def _length(self, tokens: Sequence[int], count: int) -> int:
        return len(answer_text(self._tokenizer, tokens[:count]).rstrip(REPLACEMENT_CHARACTER))
