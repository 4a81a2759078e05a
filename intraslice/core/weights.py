"""Weights of one layer, dense or sliced, in one canonical form for all model families. Tensors only, no modules.

Channel layout of queries and keys: channels `(j, j + dim/2)` of a head form a pair that is rotated by one rotary
frequency. Channels that the model does not rotate (partial rotary) also form pairs, whose frequency is `UNROTATED`.
"""

from dataclasses import dataclass, replace
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

UNROTATED = -1


@dataclass(frozen=True)
class HeadNorms:
    """RMS norms of every query and key head before the rotary embedding: `x / rms(x) * (offset + weight)`.

    All heads share the weights. The root mean square is over all channels of a head, so none of them can be removed.
    """

    query: Float[Tensor, " dim"]
    key: Float[Tensor, " dim"]
    epsilon: float
    offset: float  # 1 where the model stores the difference from 1 (Gemma), else 0


@dataclass(frozen=True)
class AttentionWeights:
    """H query heads and K key/value heads; a head has `dim` query and key channels and `value_dim` value channels.

    `written` equals `hidden`, except where the residual stream changes its width (cross-module slicing).
    """

    query: Float[Tensor, "heads dim hidden"]
    key: Float[Tensor, "kv_heads dim hidden"]
    value: Float[Tensor, "kv_heads value_dim hidden"]
    output: Float[Tensor, "written heads value_dim"]
    query_bias: Float[Tensor, "heads dim"] | None
    key_bias: Float[Tensor, "kv_heads dim"] | None
    value_bias: Float[Tensor, "kv_heads value_dim"] | None
    output_bias: Float[Tensor, " written"] | None
    kv_head: Int[Tensor, " heads"]  # the key/value head that each query head reads
    frequency: Int[Tensor, "kv_heads pairs"]  # rotary frequency of each pair, or UNROTATED
    scale: float  # of the softmax; not changed when channels are cut
    norms: HeadNorms | None = None


@dataclass(frozen=True)
class MLPWeights:
    """A gated MLP `down(act(gate x) * up x)`, or without `gate` a plain MLP `down(act(up x))`."""

    gate: Float[Tensor, "neurons hidden"] | None
    up: Float[Tensor, "neurons hidden"]
    down: Float[Tensor, "written neurons"]
    gate_bias: Float[Tensor, " neurons"] | None
    up_bias: Float[Tensor, " neurons"] | None
    down_bias: Float[Tensor, " written"] | None
    activation: str  # a key of transformers' ACT2FN


def converted(weights: AttentionWeights, dtype: torch.dtype) -> AttentionWeights:
    """A copy of the weights in another precision, outside any gradient; indices stay as they are."""
    floats: dict[str, Any] = {
        name: value.detach().to(dtype, copy=True)
        for name, value in vars(weights).items()
        if isinstance(value, Tensor) and value.is_floating_point()
    }
    return replace(weights, **floats)
