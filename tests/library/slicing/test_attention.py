"""Which rotary pairs, which value basis, which output map: small cases by hand, masked dense layers, least squares."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

from intraslice.core.linalg import value_axes
from intraslice.core.weights import UNROTATED, AttentionWeights
from intraslice.modeling.attention import SlicedAttention
from intraslice.slicing.attention import OutputMoments, choose_channels, cut_queries_and_keys, fit_output, fuse

HIDDEN = 12


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def make_weights(
    kv_head: tuple[int, ...] = (0, 0, 1, 1), frequency: tuple[int, ...] = (0, 1, 2, 3), bias: bool = True
) -> AttentionWeights:
    heads, kv_heads, dim = len(kv_head), max(kv_head) + 1, 2 * len(frequency)
    return AttentionWeights(
        query=random(heads, dim, HIDDEN, seed=1),
        key=random(kv_heads, dim, HIDDEN, seed=2),
        value=random(kv_heads, dim, HIDDEN, seed=3),
        output=random(HIDDEN, heads, dim, seed=4),
        query_bias=random(heads, dim, seed=5) if bias else None,
        key_bias=random(kv_heads, dim, seed=6) if bias else None,
        value_bias=random(kv_heads, dim, seed=7) if bias else None,
        output_bias=random(HIDDEN, seed=8) if bias else None,
        kv_head=torch.tensor(kv_head),
        frequency=torch.tensor([frequency] * kv_heads),
        scale=dim**-0.5,
    )


# Channels


def test_rotary_pairs_are_chosen_by_their_sum_over_kept_queries():
    """Pairs of channels (0, 2) and (1, 3): head 0 gives them 9 + 5 and 1 + 0, head 1 gives them 0 + 0 and 7 + 9."""
    scores = torch.tensor([[9.0, 1.0, 5.0, 0.0], [0.0, 7.0, 0.0, 9.0]])
    shared = make_weights(kv_head=(0, 0), frequency=(3, 5))
    separate = make_weights(kv_head=(0, 1), frequency=(3, 5))
    both, first, second = torch.tensor([0, 1]), torch.tensor([0]), torch.tensor([1])
    for weights, heads, channels, frequencies in (
        (shared, both, [[1, 3]], [[5]]),  # 14 against 17
        (shared, first, [[0, 2]], [[3]]),  # what a dropped query wants does not count
        (separate, both, [[0, 2], [1, 3]], [[3], [5]]),
        (separate, second, [[1, 3]], [[5]]),
    ):
        chosen = choose_channels(scores, weights, heads, 2)
        assert [part.tolist() for part in chosen] == [channels, frequencies]


def test_unrotated_channels_are_single():
    """Pairs of the layout (0, 3) rotated; (1, 4), (2, 5) not: the best singles 4 and 2 stay together."""
    weights = make_weights(kv_head=(0,), frequency=(0, UNROTATED, UNROTATED))
    scores = torch.tensor([[3.0, 1.0, 6.0, 3.0, 7.0, 2.0]])
    channels, frequency = choose_channels(scores, weights, torch.tensor([0]), 4)
    assert sorted(channels.flatten().tolist()) == [0, 2, 3, 4]
    assert frequency.tolist() == [[0, UNROTATED]]
    assert {channels[0, 0].item(), channels[0, 2].item()} == {0, 3}  # the rotated pair is half a head apart


def rope(tokens: int, frequencies: int = 4) -> tuple[Tensor, Tensor]:
    angles = torch.outer(torch.arange(tokens), torch.logspace(0, -2, frequencies)).repeat(1, 2)[None].double()
    return angles.cos(), angles.sin()


@pytest.mark.parametrize("frequency", [(0, 1, 2, 3), (0, 1, UNROTATED, UNROTATED)])
@pytest.mark.parametrize("heads", [(0, 1, 2, 3), (0, 2, 3), (1,)])
def test_cut_attention_is_dense_attention_with_the_rest_zeroed(heads, frequency):
    weights, kept = make_weights(frequency=frequency), torch.tensor(heads)
    channels, pairs = choose_channels(random(4, 8).abs(), weights, kept, 4)
    groups = weights.kv_head[kept].unique()
    of_key, of_head = torch.zeros(2, 8), torch.zeros(4)
    of_key[groups] = torch.zeros(len(groups), 8).scatter(1, channels, 1.0)
    of_head[kept] = 1.0
    masked = replace(
        weights,
        key=weights.key * of_key[..., None],
        key_bias=weights.key_bias * of_key,
        output=weights.output * of_head[:, None],
    )
    hidden = random(2, 9, HIDDEN, seed=9)
    sliced = SlicedAttention(cut_queries_and_keys(weights, kept, channels, pairs), 0)
    assert (sliced.dim, sliced.kv_heads, sliced.heads) == (4, len(groups), len(heads))
    expected = SlicedAttention(masked, 0)(hidden, position_embeddings=rope(9))[0]
    assert_close(sliced(hidden, position_embeddings=rope(9))[0], expected)


# Values and output


def moments_of(kept: Tensor, dense: Tensor) -> OutputMoments:
    return OutputMoments(kept.T @ kept, kept.T @ dense, kept.mean(0), dense.mean(0), len(kept))


@pytest.mark.parametrize("bias", [True, False])
def test_output_map_is_least_squares_of_the_dense_output(bias):
    """Without damping, `torch.linalg.lstsq` on the tokens themselves; the bias is a column of ones."""
    weights = make_weights(bias=bias)
    dense = random(200, 32) + 0.5
    kept = dense[:, 8:] + 0.3 * random(200, 24, seed=1)
    axes = torch.linalg.qr(random(3, 8, 8, seed=2)).Q[..., :4]
    target = dense @ weights.output.flatten(1).T + (weights.output_bias if bias else 0)
    inputs = torch.cat([kept[:, 8 * h : 8 * h + 8] @ axes[h] for h in range(3)], 1)
    if bias:
        inputs = torch.cat([inputs, torch.ones(200, 1).double()], 1)
    expected = torch.linalg.lstsq(inputs, target).solution
    output, output_bias = fit_output(moments_of(kept, dense), axes, weights, weights.output[:, 1:], ridge=0.0)
    assert_close(output.flatten(1).T, expected[:12], atol=1e-8, rtol=1e-8)
    if bias:
        assert_close(output_bias, expected[12], atol=1e-8, rtol=1e-8)
    else:
        assert output_bias is None


def test_the_ridge_penalises_changes_of_the_output_map():
    """Least squares on the tokens and a row for every input, on which the map should be what it was."""
    weights, dense = make_weights(bias=False), random(60, 32)
    heads, axes = torch.tensor([0, 1, 3]), torch.linalg.qr(random(3, 8, 8, seed=2)).Q[..., :6]
    kept = dense.view(60, 4, 8)[:, heads]
    projected = torch.einsum("nha,hap->nhp", kept, axes).flatten(1)
    before = torch.einsum("oha,hap->ohp", weights.output[:, heads], axes).flatten(1).T
    rows = (0.1 * projected.square().sum(0).mean()).sqrt() * torch.eye(18).double()
    target = torch.cat([dense @ weights.output.flatten(1).T, rows @ before])
    expected = torch.linalg.lstsq(torch.cat([projected, rows]), target).solution
    output, _ = fit_output(moments_of(kept.flatten(1), dense), axes, weights, weights.output[:, heads], ridge=0.1)
    assert_close(output.flatten(1).T, expected)


@pytest.mark.parametrize("bias", [True, False])
def test_uncut_attention_keeps_its_output_map_whatever_the_ridge(bias):
    weights, dense = make_weights(bias=bias), random(10, 32)  # fewer tokens than channels
    axes = torch.eye(8).double().expand(4, -1, -1)
    output, output_bias = fit_output(moments_of(dense, dense), axes, weights, weights.output, ridge=0.5)
    assert_close(output, weights.output)
    assert (output_bias is None) is (not bias)
    if bias:
        assert_close(output_bias, weights.output_bias)


def test_fused_attention_is_projection_then_output_map():
    weights = make_weights()
    cut = cut_queries_and_keys(
        weights, torch.tensor([0, 2, 3]), torch.tensor([[0, 1, 4, 5], [1, 3, 5, 7]]), torch.tensor([[0, 1], [1, 3]])
    )
    axes = torch.linalg.qr(random(2, 8, 8, seed=2)).Q[..., :6]
    output, bias = random(HIDDEN, 3, 6, seed=3), random(HIDDEN, seed=4)
    hidden = random(2, 9, HIDDEN, seed=9)
    fused = SlicedAttention(fuse(cut, axes, output, bias), 0)
    assert fused.value_dim == 6
    unfused_output = torch.einsum("ohp,hap->oha", output, axes[cut.kv_head])  # the same map on unrotated values
    unfused = SlicedAttention(replace(cut, output=unfused_output, output_bias=bias), 0)
    assert_close(fused(hidden, position_embeddings=rope(9))[0], unfused(hidden, position_embeddings=rope(9))[0])


# Axes of values


def test_values_that_are_never_active_get_the_axes_of_the_output_map():
    output = torch.zeros(HIDDEN, 1, 4)
    output[0, 0, 2], output[1, 0, 1] = 3.0, 2.0
    axes = value_axes(torch.zeros(4, 4), output, torch.tensor([0]), 2)
    assert_close(axes[0].abs(), torch.eye(4)[:, [2, 1]])
