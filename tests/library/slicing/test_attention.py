"""Which rotary pairs, which value basis, which output map: small cases by hand and masked dense layers.

And the units that a chart shows as kept are those that a slice keeps: exact rows of the dense weights.
"""

from collections.abc import Sequence
from dataclasses import replace

import pytest
import torch
from random_weights import attention_weights
from random_weights import random64 as random
from torch import Tensor
from torch.testing import assert_close

from intraslice.core.kept_channels import choose_channels
from intraslice.core.linalg import value_axes
from intraslice.core.weights import UNROTATED, AttentionWeights
from intraslice.modeling.attention import SlicedAttention
from intraslice.modeling.families import blocks
from intraslice.slicing.attention import cut_queries_and_keys
from intraslice.slicing.units import kept_units, layer_units

HIDDEN = 12


def make_weights(kv_head: Sequence[int] = (0, 0, 1, 1), frequency: Sequence[int] = (0, 1, 2, 3)) -> AttentionWeights:
    """Whose key/value heads rotate alike."""
    frequencies = [frequency] * (max(kv_head) + 1)
    return attention_weights(HIDDEN, kv_head, frequencies, 2 * len(frequency), dtype=torch.float64)


def test_rotary_pairs_singles_and_axes_by_hand():
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
    weights = make_weights(kv_head=(0,), frequency=(0, UNROTATED, UNROTATED))
    scores = torch.tensor([[3.0, 1.0, 6.0, 3.0, 7.0, 2.0]])
    channels, frequency = choose_channels(scores, weights, torch.tensor([0]), 4)
    assert sorted(channels.flatten().tolist()) == [0, 2, 3, 4]
    assert frequency.tolist() == [[0, UNROTATED]]
    assert {channels[0, 0].item(), channels[0, 2].item()} == {0, 3}  # the rotated pair is half a head apart
    output = torch.zeros(HIDDEN, 1, 4)
    output[0, 0, 2], output[1, 0, 1] = 3.0, 2.0
    axes = value_axes(torch.zeros(4, 4), output, torch.tensor([0]), 2)
    assert_close(axes[0].abs(), torch.eye(4)[:, [2, 1]])


def rope(tokens: int, frequencies: int = 4) -> tuple[Tensor, Tensor]:
    angles = torch.outer(torch.arange(tokens), torch.logspace(0, -2, frequencies)).repeat(1, 2)[None].double()
    return angles.cos(), angles.sin()


@pytest.mark.parametrize("frequency", [(0, 1, 2, 3), (0, 1, UNROTATED, UNROTATED)])
@pytest.mark.parametrize("heads", [(0, 1, 2, 3), (0, 2, 3), (1,)])
def test_cut_attention_is_dense_attention_with_the_rest_zeroed(heads, frequency):
    weights, kept = make_weights(frequency=frequency), torch.tensor(heads)
    scores = random(4, 8).abs()
    channels, _ = choose_channels(scores, weights, kept, 4)
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
    sliced = SlicedAttention(cut_queries_and_keys(weights, scores, heads, 4), 0)
    assert (sliced.dim, sliced.kv_heads, sliced.heads) == (4, len(groups), len(heads))
    expected = SlicedAttention(masked, 0)(hidden, position_embeddings=rope(9))[0]
    assert_close(sliced(hidden, position_embeddings=rope(9))[0], expected)


# A layer without attention, one without an MLP, one without both.
HOLLOW = tuple((layer, module, 1.0) for layer, module in ((0, "attention"), (1, "mlp"), (2, "attention"), (2, "mlp")))


def rows(matrix: Tensor) -> list[list[float]]:
    """The rows in an order that does not depend on theirs: pairs of channels may be stored in another one."""
    return sorted(matrix.tolist())


@pytest.mark.parametrize(
    ("method", "options"),
    [
        ("intraslice", {}),
        ("intraslice", {"order": "sequential"}),
        ("intraslice", {"shapes": "runtime"}),
        ("intraslice", {"sparsity": 0.75, "cap": 1.0, "locked": HOLLOW}),
        ("shortgpt", {}),
    ],
    ids=["one-shot", "sequential", "runtime", "hollow", "shortgpt"],
)
def test_the_units_that_are_named_are_the_slices(every_family_case, method, options) -> None:
    dense, stats = every_family_case.dense, every_family_case.stats
    plan = every_family_case.plan(method=method, **options)
    sliced = every_family_case.cut(plan, method)
    order = plan.config.order if method == "intraslice" else "one-shot"
    narrower = 0
    for index, (block, layer) in enumerate(zip(blocks(dense), plan.layers, strict=True)):
        if method == "shortgpt" and 0 < layer.mlp_ratio < 1:
            continue  # the one layer that it narrows, by other scores
        units = layer_units(block, stats.layers[index], stats.tokens, stats.profile.layers[index].table)
        channels, neurons = kept_units(units, layer, order)
        attention, mlp = block.attention.weights(), block.mlp.weights()
        made = sliced.model.layers[index].self_attn.weights(), sliced.model.layers[index].mlp.weights()
        assert len(made[0].query) == len(layer.heads)
        for own, head in zip(made[0].query, layer.heads, strict=True):
            assert rows(own) == rows(attention.query[head][channels[attention.kv_head[head]]])
        groups = sorted({int(attention.kv_head[head]) for head in layer.heads})
        assert [rows(own) for own in made[0].key] == [rows(attention.key[group][channels[group]]) for group in groups]
        assert not channels[[group for group in range(len(attention.key)) if group not in groups]].any()
        if neurons is None:
            assert order == "sequential"
            assert len(made[1].up) == layer.neurons
        else:
            assert torch.equal(made[1].up, mlp.up[neurons])
            narrower += 0 < len(made[1].up) < len(mlp.up)
    assert narrower or order == "sequential" or method == "shortgpt"
