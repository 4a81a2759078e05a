"""Logits in chunks of a few tokens: for all tokens at once they would take most of a run's memory and time."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from jaxtyping import Float, Int
from torch import Tensor
from transformers import PreTrainedModel

# Larger chunks are a third slower, as the memory for their logits is mapped anew each time.
LOGIT_TOKENS = 128


def logits_in_chunks(
    head: Callable[[Tensor], Tensor], hidden: Float[Tensor, "tokens hidden"], *aligned: Tensor
) -> Iterator[tuple[Tensor, ...]]:
    """Float32 logits of a head, in chunks of `LOGIT_TOKENS` tokens, with the same rows of each `aligned`."""
    for rows, *aligned_rows in zip(*(tensor.split(LOGIT_TOKENS) for tensor in (hidden, *aligned)), strict=True):
        yield head(rows).float(), *aligned_rows


def next_token_logits(
    model: PreTrainedModel, tokens: Int[Tensor, "batch tokens"], cache: Mapping[str, Any], **inputs: Tensor
) -> tuple[Float[Tensor, "batch vocabulary"], dict[str, Any]]:
    """Logits of the token after `tokens`, and the cache for the next call. Pass an empty cache to the first call.

    `inputs` are further arguments of the model, such as the mask of left-padded prompts.

    The head gets a matrix. `logits_to_keep` would pass it a three-dimensional slice, for which torch runs a batched
    product that copies the head's weights; in bfloat16 this costs a third of the time of all layers.
    """
    output = model.model(input_ids=tokens, use_cache=True, **cache, **inputs)
    keyword = cache_keyword(model)
    return model.lm_head(output.last_hidden_state[:, -1]), {keyword: getattr(output, keyword)}


def cache_keyword(model: PreTrainedModel) -> str:
    """The name of the key/value cache in the model's forward and in its output.

    transformers renames it: 5.24 warns about `past_key_values`; earlier versions do not accept `cache`.
    """
    return "cache" if "cache" in inspect.signature(model.model.forward).parameters else "past_key_values"
