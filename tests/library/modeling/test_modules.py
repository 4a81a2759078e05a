"""The canonical forwards against plain loops: any head counts, widths, groups and rotary pairs."""

import cmath

import pytest
import torch
from random_weights import attention_weights, random
from torch import Tensor
from torch.testing import assert_close
from transformers import DynamicCache

from intraslice.core.weights import UNROTATED, AttentionWeights
from intraslice.modeling.attention import SlicedAttention

HIDDEN = 10
FREQUENCIES = torch.tensor([1.0, 0.3, 0.05])


def tables(tokens: int, start: int = 0) -> tuple[Tensor, Tensor]:
    """Cosines and sines as transformers hands them to every layer: each frequency twice."""
    angles = torch.outer(torch.arange(start, start + tokens), FREQUENCIES).repeat(1, 2)[None]
    return angles.cos(), angles.sin()


def turned(channels: Tensor, frequencies: Tensor, position: int) -> Tensor:
    """The rotary embedding of one head at one position, as a complex multiplication."""
    half = len(channels) // 2
    result = channels.clone()
    for pair, index in enumerate(frequencies.tolist()):
        angle = 0.0 if index == UNROTATED else position * FREQUENCIES[index].item()
        value = complex(channels[pair], channels[pair + half]) * cmath.exp(1j * angle)
        result[pair], result[pair + half] = value.real, value.imag
    return result


def plain_attention(weights: AttentionWeights, hidden: Tensor) -> Tensor:
    """One sequence, causal, head by head and position by position."""

    def linear(weight: Tensor, bias: Tensor | None) -> Tensor:
        return hidden @ weight.T + (0 if bias is None else bias)

    def owned(biases: Tensor | None, index: int) -> Tensor | None:
        return None if biases is None else biases[index]

    out = torch.zeros_like(hidden)
    for head, group in enumerate(weights.kv_head.tolist()):
        turn = weights.frequency[group]
        query = linear(weights.query[head], owned(weights.query_bias, head))
        key = linear(weights.key[group], owned(weights.key_bias, group))
        value = linear(weights.value[group], owned(weights.value_bias, group))
        query, key = (torch.stack([turned(r, turn, t) for t, r in enumerate(rows)]) for rows in (query, key))
        for token in range(len(hidden)):
            attended = torch.softmax(key[: token + 1] @ query[token] * weights.scale, 0) @ value[: token + 1]
            out[token] += weights.output[:, head] @ attended
    return out if weights.output_bias is None else out + weights.output_bias


LAYOUTS = {
    "even groups": ((0, 0, 1, 1), [[0, 1, 2], [0, 1, 2]], 6),
    "ragged groups": ((0, 1, 1, 1), [[0, 2], [0, 2]], 4),
    "own pairs for each group": ((0, 0, 1), [[0, 2], [1, 2]], 4),
    "unrotated pairs": ((0, 1), [[0, UNROTATED, UNROTATED], [1, 2, UNROTATED]], 6),
    "narrow values": ((0, 0), [[0, 1, 2]], 2),
    "wide values": ((0, 1), [[1], [1]], 6),
}


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("layout", LAYOUTS.values(), ids=LAYOUTS)
def test_attention_is_the_plain_loop(layout, bias):
    weights = attention_weights(HIDDEN, *layout, bias=bias)
    hidden = random(2, 7, HIDDEN, seed=9)
    result, _ = SlicedAttention(weights, 0)(hidden, position_embeddings=tables(7))
    assert_close(result, torch.stack([plain_attention(weights, rows) for rows in hidden]), atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("keyword", ["cache", "past_key_values"])
@pytest.mark.parametrize("layout", LAYOUTS.values(), ids=LAYOUTS)
def test_token_by_token_with_a_cache_is_all_at_once(layout, keyword):
    attention = SlicedAttention(attention_weights(HIDDEN, *layout), 0)
    hidden, cache = random(1, 6, HIDDEN, seed=9), DynamicCache()
    steps = [attention(hidden[:, t : t + 1], position_embeddings=tables(1, t), **{keyword: cache})[0] for t in range(6)]
    assert_close(torch.cat(steps, 1), attention(hidden, position_embeddings=tables(6))[0], atol=1e-5, rtol=1e-4)
    assert cache.layers[0].keys.shape == (1, attention.kv_heads, 6, attention.dim)
    assert cache.layers[0].values.shape == (1, attention.kv_heads, 6, attention.value_dim)
