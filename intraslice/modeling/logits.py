"""Logits of a few tokens at a time: over all tokens they would be most of a run's memory, and of its time."""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Mapping
from typing import Any

from jaxtyping import Float, Int
from torch import Tensor
from transformers import PreTrainedModel

# A larger piece is as much work, but of a vocabulary's logits its memory is then mapped anew each time: a third slower.
LOGIT_TOKENS = 128


def logits_in_chunks(
    model: PreTrainedModel, hidden: Float[Tensor, "tokens hidden"], *aligned: Tensor
) -> Iterator[tuple[Tensor, ...]]:
    """Float32 logits (tokens, vocabulary) of `LOGIT_TOKENS` tokens at a time, each with its rows of every `aligned`."""
    for rows, *aligned_rows in zip(*(tensor.split(LOGIT_TOKENS) for tensor in (hidden, *aligned)), strict=True):
        yield model.lm_head(rows).float(), *aligned_rows


def read_on(
    model: PreTrainedModel, tokens: Int[Tensor, "batch tokens"], cache: Mapping[str, Any]
) -> tuple[Float[Tensor, "batch vocabulary"], dict[str, Any]]:
    """Logits of what follows these tokens, and the cache for the next call. The first call gives an empty one.

    The head reads a matrix: of a slice of longer hidden states, which `logits_to_keep` gives it, torch makes a batched
    product that copies the head's weights, and in bfloat16 costs as much as a third of the layers.
    """
    output = model.model(input_ids=tokens, use_cache=True, **cache)
    keyword = cache_keyword(model)
    return model.lm_head(output.last_hidden_state[:, -1]), {keyword: getattr(output, keyword)}


def cache_keyword(model: PreTrainedModel) -> str:
    """What the model's forward, and its output, call the key/value cache.

    transformers renames it: 5.24 warns of `past_key_values`, earlier versions do not know `cache`.
    """
    return "cache" if "cache" in inspect.signature(model.model.forward).parameters else "past_key_values"
