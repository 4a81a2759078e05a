"""Logits of a few tokens at a time: over all tokens they would be most of a run's memory."""

from __future__ import annotations

from collections.abc import Iterator

from jaxtyping import Float
from torch import Tensor
from transformers import PreTrainedModel

LOGIT_TOKENS = 512


def logits_in_chunks(
    model: PreTrainedModel, hidden: Float[Tensor, "tokens hidden"], *aligned: Tensor
) -> Iterator[tuple[Tensor, ...]]:
    """Float32 logits (tokens, vocabulary) of `LOGIT_TOKENS` tokens at a time, each with its rows of every `aligned`."""
    for rows, *aligned_rows in zip(*(tensor.split(LOGIT_TOKENS) for tensor in (hidden, *aligned)), strict=True):
        yield model.lm_head(rows).float(), *aligned_rows
