"""ShortGPT against layers deleted by hand, and the budget that every method keeps."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn
from torch.testing import assert_close

from intraslice.core.config import SliceConfig
from intraslice.methods.registry import METHODS, plan_by, slice_by


def made(case, sparsity: float, **config):
    plan = plan_by("shortgpt", case.loaded.model, case.stats, SliceConfig(sparsity, **config))
    return plan, slice_by("shortgpt", case.loaded.model, plan, case.stats, case.tokens, progress=False)


def test_layers_go_in_the_order_of_their_influence():
    ratios = METHODS["shortgpt"].layer_ratios
    assert ratios([0.3, 0.1, 0.2, 0.4], 0.5) == [0.0, 1.0, 1.0, 0.0]
    assert ratios([0.3, 0.1, 0.2, 0.4], 0.3125) == [0.0, 1.0, 0.25, 0.0]
    assert ratios([0.3, 0.1], 1.0) == [1.0, 1.0]
    assert ratios([0.3, 0.1], 0.0) == [0.0, 0.0]


@torch.no_grad()
def test_the_model_is_the_one_without_these_layers(tiny_case):
    case = tiny_case("llama-gqa")
    dense = case.loaded.model
    count = len(dense.model.layers)
    plan, model = made(case, 1 / count)
    (gone,) = (index for index, layer in enumerate(plan.layers) if layer.attention_ratio == 1)
    influence = [layer.influence.item() for layer in case.stats.layers]
    assert influence[gone] == min(influence)
    shorter = copy.deepcopy(dense)
    shorter.model.layers = nn.ModuleList(layer for index, layer in enumerate(shorter.model.layers) if index != gone)
    for index, layer in enumerate(shorter.model.layers):
        layer.self_attn.layer_idx = index
    assert_close(model(case.tokens).logits, shorter(case.tokens).logits)
    assert sum(p.numel() for p in model.model.layers[gone].parameters()) < 0.01 * plan.parameters.dense_decoder


@torch.no_grad()
def test_the_plan_counts_the_model(family_case):
    case = family_case
    plan, model = made(case, 0.4)
    assert plan.parameters.sliced_total == sum(p.numel() for p in model.parameters())
    assert plan.removed_fraction == pytest.approx(0.4, abs=0.01)
    assert sum(0 < layer.mlp_ratio < 1 for layer in plan.layers) <= 1
    assert model(case.tokens[:2]).logits.isfinite().all()
    assert_close(made(case, 0.0)[1](case.tokens).logits, case.loaded.model(case.tokens).logits)
