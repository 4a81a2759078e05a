"""The first divergent token of two generations."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from transformers import PreTrainedTokenizerBase

from intraslice.evaluation.generation import text_of


@dataclass(frozen=True)
class Divergence:
    """`position` tokens are common; `first` and `second` are the next tokens, None where a generation had ended."""

    position: int
    common: str
    first: str | None
    second: str | None


def first_divergence(
    tokenizer: PreTrainedTokenizerBase, first: Sequence[int], second: Sequence[int]
) -> Divergence | None:
    """The first token at which two generations differ; None if they are equal."""
    position = next(
        (i for i, (a, b) in enumerate(zip(first, second, strict=False)) if a != b), min(len(first), len(second))
    )
    if position == len(first) == len(second):
        return None
    next_tokens = (
        text_of(tokenizer, [tokens[position]]) if position < len(tokens) else None for tokens in (first, second)
    )
    return Divergence(position, text_of(tokenizer, first[:position]), *next_tokens)
