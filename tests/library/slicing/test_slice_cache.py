"""What one-shot slices share: rankings, and modules of equal sizes, with the numbers of a slice made alone."""

from __future__ import annotations

import gc
from unittest.mock import Mock

import torch
from torch import nn

from intraslice.core.config import SliceConfig
from intraslice.planning.ratios import SlicePlan, make_plan
from intraslice.slicing import one_shot
from intraslice.slicing.driver import slice_model
from intraslice.slicing.one_shot import SliceCache


def modules(model: nn.Module) -> list[nn.Module]:
    return [module for layer in model.model.layers for module in (layer.self_attn, layer.mlp)]


def sizes(plan: SlicePlan) -> list[tuple[int, ...]]:
    return [size for layer in plan.layers for size in ((layer.dim, *layer.heads), (layer.neurons,))]


def test_what_is_equal_is_shared_as_long_as_it_is_used_and_the_numbers_are_those_of_a_slice_alone(
    family_case, monkeypatch
):
    case, cache, ranked = family_case, SliceCache(), Mock(wraps=one_shot.rank_neurons)
    monkeypatch.setattr(one_shot, "rank_neurons", ranked)
    plans = [make_plan(case.stats.profile, SliceConfig(s, "pca", order="one-shot")) for s in (0.3, 0.35, 0.5, 0.3)]
    made = [slice_model(case.loaded.model, plan, case.stats, cache=cache, progress=False) for plan in plans]
    assert ranked.call_count == len(cache.rankings) <= len(plans[0].layers)
    equal = [first == second for first, second in zip(sizes(plans[0]), sizes(plans[1]), strict=True)]
    assert [a is b for a, b in zip(modules(made[0]), modules(made[1]), strict=True)] == equal
    assert modules(made[0]) == modules(made[3])
    for model, plan in zip(made[:3], plans, strict=False):
        alone = slice_model(case.loaded.model, plan, case.stats, progress=False)
        assert torch.equal(model(case.tokens).logits, alone(case.tokens).logits)
        assert not {*modules(alone)} & {*modules(model)} - {*modules(case.loaded.model)}
    made.clear()
    del model
    gc.collect()
    assert {*cache.attentions.values(), *cache.mlps.values()} <= {*modules(case.loaded.model)}
