"""The tokens of answers, generated once for all jobs that ask the same of the same model, also one after another."""

from __future__ import annotations

import hashlib
import time
from dataclasses import dataclass, field

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from intraslice.evaluation.generation import Sampling, end_tokens, stream_tokens

from ..jobs.job import Job, Shared
from ..state.request import SliceKey
from .views import Question

# Between two turns: the page shows new tokens no more often, and a turn of another thread takes some time to begin.
TOKENS, SECONDS = 4, 0.1


@dataclass(eq=False)
class TokenStream:
    """An answer's tokens so far, and how it ended."""

    tokens: list[int] = field(default_factory=list)
    state: str = "growing"  # then "ended" (by an end token) or "cut" (at the maximum number of tokens)

    def generate(
        self, job: Job, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, prompt: str, sampling: Sampling
    ) -> None:
        """Generate the answer, as work that jobs share. Raises as `stream_tokens` does."""
        begun = 0.0
        for index, token in enumerate(stream_tokens(model, tokenizer, prompt, sampling, pause=job.checkpoint)):
            self.tokens[index : index + 1] = [token]  # which is there already if earlier work was cancelled
            if index % TOKENS == 0 or time.monotonic() > begun + SECONDS:
                job.checkpoint()
                begun = time.monotonic()
        self.state = "ended" if self.tokens and self.tokens[-1] in end_tokens(model) else "cut"

    def reach(self, work: Shared[None] | None, count: int) -> bool:
        """Return whether there are more than `count` tokens, once that is certain. Raises as `generate` does.

        `work` generates them, unless the answer has ended.
        """
        if work is not None and work.wait(until=lambda: len(self.tokens) > count):
            work.result()
        return len(self.tokens) > count


def stream_key(model: SliceKey, tokenizer: PreTrainedTokenizerBase, question: Question) -> str:
    """What an answer depends on, as a digest: neither prompts nor templates are kept in memory."""
    template = None if question.raw else tokenizer.chat_template
    seed = question.sample_seed if question.temperature else 0
    parts = model, model.calibration.identity, template, question._replace(raw=False, sample_seed=seed)
    return hashlib.sha256(repr(parts).encode()).hexdigest()
