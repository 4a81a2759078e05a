"""FLAT-LLM against small cases by hand, torch's own eigenvectors, and what every method must hold."""

from __future__ import annotations

import math

import pytest
import torch
from torch.testing import assert_close

from intraslice.core.config import SliceConfig
from intraslice.methods.flatllm import proportional_fractions
from intraslice.methods.registry import METHODS, plan_by, slice_by
from intraslice.modeling.families import blocks


def made(case, sparsity: float, **config):
    plan = plan_by("flatllm", case.loaded.model, case.stats, SliceConfig(sparsity, **config))
    return plan, slice_by("flatllm", case.loaded.model, plan, case.stats, case.tokens, progress=False)


def test_fractions_by_hand():
    """Shares of 1:3:8 of 1.5 modules: the largest is whole, and the others divide 0.5 in the ratio 1:3."""
    assert proportional_fractions([1.0, 3.0, 8.0], 0.5) == pytest.approx([0.125, 0.375, 1.0])
    assert proportional_fractions([1.0, 2.0], 0.3) == pytest.approx([0.2, 0.4])
    assert proportional_fractions([0.1, 5.0, 9.0], 1.0) == [1.0] * 3
    assert proportional_fractions([0.0, 0.0], 0.4) == pytest.approx([0.4, 0.4])


def test_ratios_are_those_of_the_angles():
    """Layers that turn their input by 90 and 45 degrees keep 2:1."""
    first, second = METHODS["flatllm"].layer_ratios([1.0, 1 - math.sqrt(0.5)], 0.4)
    assert (first, second) == pytest.approx((0.2, 0.6))


@torch.no_grad()
def test_values_lose_their_last_principal_axes(tiny_case):
    """`W_o W_v` becomes `W_o Q Q^T W_v`; the lost energy of the values is the sum of the last eigenvalues."""
    case = tiny_case("llama-gqa")
    plan, model = made(case, 0.3)
    for block, layer, kept, stats in zip(
        blocks(case.loaded.model), model.model.layers, plan.layers, case.stats.layers, strict=True
    ):
        dense, sliced = block.attention.weights(), layer.self_attn.weights()
        assert torch.equal(sliced.query, dense.query)
        assert torch.equal(sliced.key, dense.key)
        values, vectors = torch.linalg.eigh(stats.value_moment.double())
        axes = vectors[..., -kept.dim :]
        for head, group in enumerate(dense.kv_head.tolist()):
            projection = axes[group] @ axes[group].T
            expected = dense.output[:, head].double() @ projection @ dense.value[group].double()
            assert_close((sliced.output[:, head] @ sliced.value[group]).double(), expected, atol=1e-4, rtol=1e-4)
        lost = stats.value_moment.double() - axes @ (axes.mT @ stats.value_moment.double())
        assert_close(lost.diagonal(dim1=-2, dim2=-1).sum(-1), values[..., : -kept.dim].sum(-1), atol=1e-3, rtol=1e-3)


@torch.no_grad()
def test_the_plan_counts_the_model(family_case):
    case = family_case
    plan, model = made(case, 0.3)
    assert plan.parameters.sliced_total == sum(p.numel() for p in model.parameters())
    assert plan.removed_fraction == pytest.approx(0.3, abs=0.01)
    for layer, kept, size in zip(model.model.layers, plan.layers, case.stats.sizes, strict=True):
        attention = layer.self_attn
        assert (attention.heads, attention.dim, attention.value_dim) == (size.heads, size.dim, kept.dim)
    assert model(case.tokens[:2]).logits.isfinite().all()
    assert_close(made(case, 0.0)[1](case.tokens).logits, case.loaded.model(case.tokens).logits)


@torch.no_grad()
def test_a_module_may_go_whole(tiny_case):
    case = tiny_case("phi")
    plan, model = made(case, 0.5, locked=((0, "attention", 1.0), (2, "mlp", 1.0)))
    assert (model.model.layers[0].self_attn.heads, model.model.layers[2].mlp.neurons) == (0, 0)
    assert plan.parameters.sliced_decoder == sum(p.numel() for p in model.model.layers.parameters())
