"""Random tensors, and the weights of single modules made of them, by seeds."""

from collections.abc import Sequence
from dataclasses import replace
from functools import partial

import torch
from torch import Tensor

from intraslice.core.weights import AttentionWeights, MLPWeights


def random(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


random64 = partial(random, dtype=torch.float64)


def attention_weights(
    hidden: int,
    kv_head: Sequence[int],
    frequency: Sequence[Sequence[int]],
    value_dim: int,
    bias: bool = True,
    dtype: torch.dtype = torch.float32,
) -> AttentionWeights:
    """Of query heads that read the key/value heads `kv_head`, which rotate their pairs by `frequency`."""
    heads, kv_heads, dim = len(kv_head), len(frequency), 2 * len(frequency[0])
    draw = partial(random, dtype=dtype)
    weights = AttentionWeights(
        query=draw(heads, dim, hidden, seed=1),
        key=draw(kv_heads, dim, hidden, seed=2),
        value=draw(kv_heads, value_dim, hidden, seed=3),
        output=draw(hidden, heads, value_dim, seed=4),
        query_bias=draw(heads, dim, seed=5),
        key_bias=draw(kv_heads, dim, seed=6),
        value_bias=draw(kv_heads, value_dim, seed=7),
        output_bias=draw(hidden, seed=8),
        kv_head=torch.tensor(kv_head),
        frequency=torch.tensor(frequency),
        scale=0.3,
    )
    return weights if bias else replace(weights, query_bias=None, key_bias=None, value_bias=None, output_bias=None)


def mlp_weights(
    hidden: int,
    neurons: int,
    gated: bool = True,
    bias: bool = True,
    activation: str = "silu",
    dtype: torch.dtype = torch.float32,
) -> MLPWeights:
    draw = partial(random, dtype=dtype)
    return MLPWeights(
        gate=draw(neurons, hidden, seed=1) if gated else None,
        up=draw(neurons, hidden, seed=2),
        down=draw(hidden, neurons, seed=3),
        gate_bias=draw(neurons, seed=4) if gated and bias else None,
        up_bias=draw(neurons, seed=5) if bias else None,
        down_bias=draw(hidden, seed=6) if bias else None,
        activation=activation,
    )
