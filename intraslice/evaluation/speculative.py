"""A sliced model as the draft of its dense one: how many of its tokens are accepted, and how much faster that is.

Speculative decoding (arXiv 2211.17192), greedily: the draft proposes some tokens, the dense model reads them all at
once, and keeps those that are its own choice and one more. The answer is the dense model's.
"""

from __future__ import annotations

import itertools
import math
import time
from collections.abc import Collection, Generator, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from intraslice.core.errors import UserError
from intraslice.core.progress import Progress, repeating
from intraslice.evaluation.generation import READ, end_tokens, prompt_tokens
from intraslice.modeling.logits import read_on

MOST_PROPOSALS = 64


@dataclass(frozen=True)
class DraftConfig:
    """Answers of `new` tokens at most, for which the draft proposes `proposals` at a time; `chat` as in `Sampling`."""

    new: int = 64
    proposals: int = 4
    chat: bool = True

    def __post_init__(self) -> None:
        if self.new < 3:
            raise UserError(f"new tokens are {self.new!r}; wanted 3 or more, so that there is something to propose")
        if not 1 <= self.proposals <= MOST_PROPOSALS:
            raise UserError(f"proposals are {self.proposals!r}; wanted 1 to {MOST_PROPOSALS} tokens at a time")


@dataclass(frozen=True)
class Acceptance:
    """What came of all prompts; compare seconds with each other only."""

    prompts: int
    agreeing: int  # prompts whose answer is the dense model's own, token by token; rounding may part two equals
    proposed: int
    accepted: int
    dense_passes: int  # of the dense model over the draft's proposals
    dense_seconds: float  # of the dense model alone, from the prompt to the end of the answer
    drafted_seconds: float

    @property
    def rate(self) -> float:
        """The share of proposed tokens that the dense model would have written; nan where none were proposed."""
        return self.accepted / self.proposed if self.proposed else math.nan

    @property
    def speedup(self) -> float:
        """How many times as fast the answers are there."""
        return self.dense_seconds / self.drafted_seconds


@dataclass
class _Reader:
    """A model, how many tokens it has read and keeps in its cache, and the seconds that took."""

    model: PreTrainedModel
    read: int = 0
    seconds: float = 0.0
    cache: dict[str, Any] = field(default_factory=dict)

    def next_token(self, tokens: Sequence[int]) -> Generator[None, None, int]:
        """Read on; the likeliest token after all of these. Yields between every `READ` of them."""
        for start in range(0, len(tokens), READ):
            if start:
                yield
            with self._reading(tokens[start : start + READ]) as ids:
                logits, self.cache = read_on(self.model, ids, self.cache)
                token = int(logits[0].argmax())  # which also waits for a GPU
        return token

    def next_tokens(self, tokens: Sequence[int]) -> list[int]:
        """Read on, which is not the first time; the likeliest token after each of these."""
        with self._reading(tokens) as ids:
            hidden = self.model.model(input_ids=ids, use_cache=True, **self.cache).last_hidden_state
            return self.model.lm_head(hidden[0]).argmax(-1).tolist()

    def keep(self, tokens: int) -> None:
        """As if no more had been read than this many."""
        if self.read > tokens:
            (cache,) = self.cache.values()
            cache.crop(tokens - self.read)
            self.read = tokens

    @contextmanager
    def _reading(self, tokens: Sequence[int]) -> Iterator[Int[Tensor, "1 tokens"]]:
        start = time.perf_counter()
        with torch.no_grad():
            yield torch.tensor([tokens], device=self.model.device)
        self.seconds += time.perf_counter() - start
        self.read += len(tokens)


def acceptance(
    dense: PreTrainedModel,
    sliced: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[str],
    config: DraftConfig | None = None,
) -> Generator[Progress, None, Acceptance]:
    """Answer every prompt with the dense model alone, then with the sliced one as its draft; yields between forwards.

    What happens meanwhile does not count. Raises UserError where there are no prompts, where one is empty or its answer
    would not fit the model's positions or sliding window, and for models of different vocabularies.
    """
    config = config or DraftConfig()
    sizes = [model.lm_head.out_features for model in (dense, sliced)]
    if sizes[0] != sizes[1]:
        raise UserError(f"the models know {sizes[0]:,} and {sizes[1]:,} tokens; a draft is a slice of its dense model")
    texts = [_prompt(dense, tokenizer, prompt, config) for prompt in prompts]
    if not texts:
        raise UserError("there are no prompts; wanted one or more")
    ends, results = end_tokens(dense), []
    for model in (dense, sliced):
        # The first forward of all is slower, and does not count.
        yield from repeating(Progress("draft", 0, len(texts)), _Reader(model).next_token(texts[0]))
    for done, text in enumerate(texts):
        event = Progress("draft", done, len(texts))
        yield event
        alone, target, draft = _Reader(dense), _Reader(dense), _Reader(sliced)
        expected = yield from repeating(event, _answer(alone, text, config, ends))
        answer, *counts = yield from repeating(event, _drafted_answer(target, draft, text, config, ends))
        results.append((answer == expected, *counts, alone.seconds, target.seconds + draft.seconds))
    yield Progress("draft", len(texts), len(texts))
    return Acceptance(len(texts), *(sum(column) for column in zip(*results, strict=True)))


def _prompt(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, prompt: str, config: DraftConfig) -> list[int]:
    tokens = prompt_tokens(tokenizer, prompt, config.chat)["input_ids"][0].tolist()
    room = min(model.config.max_position_embeddings, getattr(model.config, "sliding_window", None) or math.inf)
    if not prompt.strip() or not tokens:
        raise UserError("a prompt is empty; wanted some text to answer")
    if len(tokens) + config.new >= room:
        raise UserError(
            f"a prompt of {len(tokens):,} tokens with {config.new:,} new ones does not fit the {room:,} "
            "that the model sees at once; take a shorter prompt or fewer new tokens"
        )
    return tokens


def _answer(
    reader: _Reader, prompt: list[int], config: DraftConfig, ends: Collection[int]
) -> Generator[None, None, list[int]]:
    """The model's own greedy answer; yields between forwards."""
    answer = [(yield from reader.next_token(prompt))]
    while len(answer) < config.new and answer[-1] not in ends:
        yield
        answer.append((yield from reader.next_token(answer[-1:])))
    return answer


def _drafted_answer(
    target: _Reader, draft: _Reader, prompt: list[int], config: DraftConfig, ends: Collection[int]
) -> Generator[None, None, tuple[list[int], int, int, int]]:
    """The target's greedy answer with the help of a draft, and tokens proposed, accepted, and the target's passes."""
    known = [*prompt, (yield from target.next_token(prompt))]
    most, proposed, accepted, passes = len(prompt) + config.new, 0, 0, 0
    while len(known) < most and known[-1] not in ends:
        drafted = [*known]
        for _ in range(min(config.proposals, most - len(known) - 1)):  # every pass gives one token more
            yield
            drafted.append((yield from draft.next_token(drafted[draft.read :])))
            if drafted[-1] in ends:
                break
        yield
        chosen = target.next_tokens(drafted[target.read :])
        proposals = drafted[len(known) :]
        agreeing = itertools.takewhile(lambda pair: pair[0] == pair[1], zip(proposals, chosen, strict=False))
        agreed = len(list(agreeing))
        for reader in (target, draft):
            reader.keep(len(known) + agreed)
        known += chosen[:agreed] if agreed and chosen[agreed - 1] in ends else chosen[: agreed + 1]
        proposed, accepted, passes = proposed + len(proposals), accepted + agreed, passes + 1
    return known[len(prompt) :], proposed, accepted, passes
