"""Statistics of the tokens of answers: pure functions."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import NamedTuple

LOOP_TOKENS, LOOP_REPEATS = 4, 3  # an answer loops if a 4-gram comes three times
NGRAM = 3  # tokens, of the fraction of distinct n-grams


class AnswerStatistics(NamedTuple):
    """Statistics of several answers."""

    loops: float  # fraction of the answers in which a 4-gram comes three times
    tokens_before_divergence: float  # mean number of tokens that an answer has in common with the dense model's
    answer_tokens: float  # mean length of an answer; one that ends early has fewer chances to loop
    distinct_3grams: float  # fraction of all 3-grams within answers that are the first of their kind in their answer


def answer_statistics(answers: Sequence[Sequence[int]], dense: Sequence[Sequence[int]]) -> AnswerStatistics:
    """Statistics of the tokens of answers, where `dense` has the dense model's answers to the same prompts."""
    counts = [ngrams(answer, NGRAM) for answer in answers]
    common = [common_tokens(answer, other) for answer, other in zip(answers, dense, strict=True)]
    return AnswerStatistics(
        loops=sum(map(has_loop, answers)) / len(answers),
        tokens_before_divergence=sum(common) / len(common),
        answer_tokens=sum(map(len, answers)) / len(answers),
        distinct_3grams=sum(map(len, counts)) / max(1, sum(count.total() for count in counts)),
    )


def has_loop(answer: Sequence[int]) -> bool:
    """Whether any `LOOP_TOKENS` consecutive tokens come `LOOP_REPEATS` times or more."""
    return max(ngrams(answer, LOOP_TOKENS).values(), default=0) >= LOOP_REPEATS


def ngrams(tokens: Sequence[int], size: int) -> Counter[tuple[int, ...]]:
    """All runs of `size` consecutive tokens, with their counts."""
    return Counter(zip(*(tokens[start:] for start in range(size)), strict=False))


def common_tokens(first: Sequence[int], second: Sequence[int]) -> int:
    """The number of tokens before the first that differs, or the length of the shorter answer."""
    pairs = zip(first, second, strict=False)
    return next((i for i, (a, b) in enumerate(pairs) if a != b), min(len(first), len(second)))
