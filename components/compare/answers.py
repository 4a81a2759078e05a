"""The models answer a prompt in turn, compared with the dense one, and shared (`TokenStream`); next tokens; scores."""

import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from functools import partial

from transformers import PreTrainedModel

from intraslice.core import checks
from intraslice.core.errors import UserError
from intraslice.diagnostics.token_scores import compare_next_tokens, score_passage
from intraslice.evaluation.answers import common_tokens, has_loop
from intraslice.evaluation.generation import REPLACEMENT_CHARACTER, Sampling, answer_text, prompt_tokens
from intraslice.loading import LoadedModel
from intraslice.pretrained.tokenizer import encode

from .. import limits
from ..i18n.language import lazy_gettext
from ..jobs.job import Job, Shared
from ..jobs.status import Status
from ..jobs.waiting import JobSemaphore
from ..state.request import Request
from .models import CANNOT_ANSWER, Columns, TokenStream, columns_of, encode_off_turn, stream_key
from .views import COLUMNS, MAX_GUESSES, OTHER, Answer, NextToken, Passage, Question

Answers = Mapping[str, Answer]
MAX_CANDIDATES = 8  # next tokens of either model
# Each keeps its sliced models in memory until it ends; the dense columns of the others go on meanwhile.
SLICED_ANSWERS = JobSemaphore(limits.MAX_SLICED_ANSWERS, lazy_gettext("Waiting for other answers to end"))


def write_answers(
    job: Job, columns: Columns, request: Request, question: Question, pinned: Request | None = None, other: str = ""
) -> Answers:
    """Emit all columns' answers after some tokens, and return the whole ones. Raises UserError for an empty prompt.

    No column waits for the model of another column; the dense column does not even wait for the calibration.
    """
    checks.require_words("the prompt", question.prompt)
    loaded, chat = columns.dense(job, request), not question.raw
    encode_off_turn(job, loaded.tokenizer, lambda: prompt_tokens(loaded.tokenizer, question.prompt, chat))
    sources = columns_of(request, pinned, other)
    # The model of a calibration that is still running depends on when it is sliced, so its answer is not shared.
    is_calibrated = columns.session.is_calibrated
    shared = {name for name, column in sources.items() if name in ("dense", OTHER) or is_calibrated(column.request)}

    def key(name: str) -> str:
        return stream_key(sources[name].key(), loaded.tokenizer, question) if name in shared else ""

    with ExitStack() as stack:
        has_place = stack.enter_context(SLICED_ANSWERS.requested())
        decoder = InterleavedDecoder(job, columns, loaded, question, stack)
        decoder.start("dense", loaded.model, key("dense"))
        waiting = [name for name in sources if name != "dense" and not decoder.start_finished(name, key(name))]
        models = {
            name: stack.enter_context(job.begin(("column", sources[name]), partial(columns.load, column=sources[name])))
            for name in waiting
        }
        for name in waiting:
            decoder.show(name, Answer(state="pending"))
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
                    decoder.start(name, model, key(name))  # which names the weights, loaded only now
                    job.emit(Status(lazy_gettext("Answering")))
                except CANNOT_ANSWER as problem:
                    decoder.show(name, Answer(state="refused", problem=str(problem)))
            decoder.step()
    return dict(decoder.answers)


def next_tokens(job: Job, columns: Columns, request: Request, prompt: str, raw: bool) -> tuple[NextToken, ...]:
    """The most likely first tokens of the answer, inside a job. Raises UserError for an empty prompt."""
    checks.require_words("the prompt", prompt)
    loaded, sliced = columns.dense(job, request), columns.session.slice(job, request)
    job.emit(Status(lazy_gettext("Reading the prompt")))
    encode_off_turn(job, loaded.tokenizer, lambda: prompt_tokens(loaded.tokenizer, prompt, not raw))
    models, tokenizer, pause = (loaded.model, sliced), loaded.tokenizer, job.checkpoint
    return compare_next_tokens(*models, tokenizer, prompt, MAX_CANDIDATES, chat=not raw, pause=pause)


def score_tokens(job: Job, columns: Columns, request: Request, text: str) -> Passage:
    """The scores of a text's tokens, inside a job. Raises UserError for a text that is too short or too long."""
    loaded, sliced, text = columns.dense(job, request), columns.session.slice(job, request), text.strip()
    encode_off_turn(job, loaded.tokenizer, lambda: encode(loaded.tokenizer, text))
    count = len(encode(loaded.tokenizer, text))
    if not 2 <= count <= limits.MAX_PASSAGE_TOKENS:  # the first has no score
        raise UserError(
            "The passage must have 2 to {limit} tokens, got {count:,}.", count=count, limit=limits.MAX_PASSAGE_TOKENS
        )
    job.emit(Status(lazy_gettext("Scoring the passage")))
    return score_passage(loaded.model, sliced, loaded.tokenizer, text, MAX_GUESSES)


class InterleavedDecoder:
    """Decodes the columns in turn, a few tokens each. `stack` ends the job's part in work that other jobs share."""

    def __init__(self, job: Job, columns: Columns, dense: LoadedModel, question: Question, stack: ExitStack) -> None:
        self._job, self._streams, self._stack = job, columns.streams, stack
        self._tokenizer, self._question = dense.tokenizer, question
        self.running: dict[str, tuple[TokenStream, Shared[None] | None]] = {}
        self.answers = {name: Answer() for name in COLUMNS}  # so far
        self._tokens: defaultdict[str, list[int]] = defaultdict(list)

    def show(self, name: str, answer: Answer) -> None:
        """Emit all answers, with a new one of a column."""
        self.answers[name] = answer
        self._job.emit(dict(self.answers))

    def start(self, name: str, model: PreTrainedModel, key: str) -> None:
        """Start a column's answer; without `key` it is not shared."""
        if self.start_finished(name, key):
            return
        stream, question = self._streams.get(key) or TokenStream(), self._question
        if key:
            self._streams.put(key, stream)
        sampling = Sampling(question.tokens, question.temperature, question.sample_seed, chat=not question.raw)
        work = partial(
            stream.generate, model=model, tokenizer=self._tokenizer, prompt=question.prompt, sampling=sampling
        )
        self.running[name] = stream, self._stack.enter_context(self._job.begin(stream, work))

    def start_finished(self, name: str, key: str) -> bool:
        """Start a column whose answer is known already, without a model; returns whether it is."""
        stream = self._streams.get(key)
        if stream is None or stream.state == "growing":
            return False
        self.running[name] = stream, None
        return True

    def step(self) -> None:
        """Decode some tokens per column, or take those that others have decoded. Raises UserError for a bad prompt."""
        for name, (stream, work) in list(self.running.items()):
            tokens = self._tokens[name]
            try:
                has_more = stream.reach(work, len(tokens))
            except UserError as problem:
                if name != OTHER:
                    raise
                del self.running[name]  # its context may be shorter than that of the others
                self.show(name, Answer(state="refused", problem=str(problem)))
                continue
            if has_more:
                tokens.extend(stream.tokens[len(tokens) :])
            elif name == "dense" or "dense" not in self.running:  # else it is compared with a longer dense answer later
                del self.running[name]
            self._job.note_result()
            self.show(name, self._view(name, "growing" if has_more else stream.state))

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
