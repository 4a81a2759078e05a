"""Where two generations part."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from transformers import PreTrainedTokenizerBase

from intraslice.evaluation.generation import text_of


@dataclass(frozen=True)
class Divergence:
    """Where two answers part: `position` tokens are common; None stands for an answer that had ended."""

    position: int
    common: str
    first: str | None
    second: str | None


def first_divergence(
    tokenizer: PreTrainedTokenizerBase, first: Sequence[int], second: Sequence[int]
) -> Divergence | None:
    """The first token at which two generations differ; None where they are the same."""
    position = next(
        (i for i, (a, b) in enumerate(zip(first, second, strict=False)) if a != b), min(len(first), len(second))
    )
    if position == len(first) == len(second):
        return None
    ours, theirs = (
        text_of(tokenizer, [tokens[position]]) if position < len(tokens) else None for tokens in (first, second)
    )
    return Divergence(position, text_of(tokenizer, first[:position]), ours, theirs)
