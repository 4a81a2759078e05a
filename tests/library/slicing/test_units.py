"""The units that a chart shows as kept are those that a slice keeps: exact rows of the dense weights."""

import pytest
import torch
from torch import Tensor

from intraslice.modeling.families import blocks
from intraslice.slicing.units import kept_units, layer_units

# A layer without attention, one without an MLP, one without both.
HOLLOW = tuple((layer, module, 1.0) for layer, module in ((0, "attention"), (1, "mlp"), (2, "attention"), (2, "mlp")))


def rows(matrix: Tensor) -> list[list[float]]:
    """The rows in an order that does not depend on theirs: pairs of channels may be stored in another one."""
    return sorted(matrix.tolist())


@pytest.mark.parametrize(
    ("method", "options"),
    [
        ("intraslice", {}),
        ("intraslice", {"order": "sequential", "iterative": True}),
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
