"""The tokens of answers, generated once for all jobs that ask the same of the same model, also one after another."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from itertools import islice
from weakref import WeakValueDictionary

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from intraslice.core.progress import Pause
from intraslice.evaluation.generation import Sampling, end_tokens, stream_tokens

from .. import limits
from ..jobs.job import Job
from ..state.caches import BoundedCache
from ..state.request import SliceKey
from .views import Question

MAX_FINISHED = 1000  # answers of a few kB


class _Writer:
    """The job that generates a token now, and hands on the turn between chunks of the prompt.

    No part of the stream: the generator refers to it, and a stream in a cycle would keep its model until Python looks
    for cycles, which an idle server does not.
    """

    job: Job | None = None

    def pause(self) -> None:
        """Hand on the turn."""
        if self.job is not None:
            self.job.checkpoint()


class TokenStream:
    """An answer's tokens so far; the job that needs the next one first generates it.

    Args:
        begin: starts to generate the answer; called again if a job is cancelled while it reads the prompt.
        ends: the token ids that end an answer.
    """

    def __init__(self, begin: Callable[[Pause], Iterator[int]], ends: set[int]) -> None:
        self.tokens: list[int] = []
        self.state = "growing"  # then "ended" (by an end token) or "cut" (at the maximum number of tokens)
        self._begin: Callable[[Pause], Iterator[int]] | None = begin
        self._ends = ends
        self._generator: Iterator[int] | None = None
        self._writer = _Writer()

    def reach(self, job: Job, count: int) -> bool:
        """Return whether there are more than `count` tokens, once that is certain. Raises as `stream_tokens` does."""
        while len(self.tokens) <= count and self._begin is not None:
            if self._writer.job is not None:
                job.sleep(limits.PROMPT_POLL_SECONDS)
            else:
                self._generate(job, self._begin)
        return len(self.tokens) > count

    def _generate(self, job: Job, begin: Callable[[Pause], Iterator[int]]) -> None:
        if self._generator is None:
            self._generator = islice(begin(self._writer.pause), len(self.tokens), None)
        self._writer.job = job
        try:
            token = next(self._generator, None)
        except BaseException:
            self._generator = None  # it cannot go on
            raise
        finally:
            self._writer.job = None
        if token is not None:
            self.tokens.append(token)
        else:
            self.state = "ended" if self.tokens and self.tokens[-1] in self._ends else "cut"
            self._begin = self._generator = None  # and the model and the cache that they hold


class TokenStreams:
    """All answers in progress, and the last finished ones."""

    def __init__(self) -> None:
        self._running: WeakValueDictionary[str, TokenStream] = WeakValueDictionary()
        self._finished: BoundedCache[str, TokenStream] = BoundedCache(MAX_FINISHED)

    def finished(self, key: str) -> TokenStream | None:
        """A finished answer, or None."""
        return self._finished.get(key)

    def begin(
        self, key: str, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, prompt: str, sampling: Sampling
    ) -> TokenStream:
        """An answer; without `key` it is not shared."""

        def generate(pause: Pause) -> Iterator[int]:
            return stream_tokens(model, tokenizer, prompt, sampling, pause=pause)

        stream = (self._running.get(key) or self.finished(key)) if key else None
        if stream is None:
            stream = TokenStream(generate, end_tokens(model))
            if key:
                self._running[key] = stream
        return stream

    def keep(self, key: str, stream: TokenStream) -> None:
        """Keep a finished answer for whoever asks the same later."""
        if key and self._finished.get(key) is None:
            self._finished.put(key, stream)


def stream_key(model: SliceKey, tokenizer: PreTrainedTokenizerBase, question: Question) -> str:
    """What an answer depends on, as a digest: neither prompts nor templates are kept in memory."""
    template = None if question.raw else tokenizer.chat_template
    seed = question.seed if question.temperature else 0
    parts = model, model.calibration.identity, template, question._replace(raw=False, seed=seed)
    return hashlib.sha256(repr(parts).encode()).hexdigest()
