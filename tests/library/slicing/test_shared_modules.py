"""Modules that one-shot slices share: those of equal sizes, with the numbers of a slice made alone."""

from __future__ import annotations

import gc
from dataclasses import replace

import pytest
import torch
from torch import nn

from intraslice.core.config import SliceConfig
from intraslice.planning.ratios import SlicePlan, make_plan
from intraslice.slicing.driver import slice_model


@pytest.fixture
def case(family_case, monkeypatch):
    monkeypatch.setattr(family_case.stats, "sliced_modules", {})
    return family_case


def plan_for(case, sparsity: float, **options: object) -> SlicePlan:
    return make_plan(case.stats.profile, SliceConfig(sparsity, "pca", order="one-shot", **options))


def run(case, plan: SlicePlan) -> nn.Module:
    return slice_model(case.loaded.model, plan, case.stats, progress=False)


def modules(model: nn.Module) -> list[nn.Module]:
    return [module for layer in model.model.layers for module in (layer.self_attn, layer.mlp)]


def sizes(plan: SlicePlan) -> list[tuple[int, ...]]:
    return [size for layer in plan.layers for size in ((layer.dim, *layer.heads), (layer.neurons,))]


def test_modules_of_equal_sizes_are_shared_and_the_numbers_are_those_of_a_slice_alone(case, monkeypatch):
    plans = [plan_for(case, sparsity) for sparsity in (0.3, 0.35, 0.5)]
    made = [run(case, plan) for plan in plans]
    equal = [first == second for first, second in zip(sizes(plans[0]), sizes(plans[1]), strict=True)]
    assert [a is b for a, b in zip(modules(made[0]), modules(made[1]), strict=True)] == equal
    monkeypatch.setattr(case.stats, "sliced_modules", None)
    for model, plan in zip(made, plans, strict=True):
        alone = run(case, plan)
        assert torch.equal(model(case.tokens).logits, alone(case.tokens).logits)
        assert not {*map(id, modules(alone))} & {*map(id, modules(model))} - {*map(id, modules(case.loaded.model))}


def test_a_slice_made_again_costs_nothing_while_the_first_is_there(case):
    first, second = (run(case, plan_for(case, 0.4)) for _ in range(2))
    assert modules(first) == modules(second)
    dense = {*map(id, modules(case.loaded.model))}
    before = {key for key, module in case.stats.sliced_modules.items() if module() is not None}
    del first, second
    gc.collect()
    left = {id(module()) for module in case.stats.sliced_modules.values() if module() is not None}
    assert before
    assert left <= dense  # nothing is kept for its own sake


def test_a_model_that_is_trained_shares_nothing(case):
    plan = plan_for(case, 0.4)
    trained = replace(plan, config=replace(plan.config, recovery="distill"))
    first, second, other = run(case, trained), run(case, trained), run(case, plan)
    dense = {*map(id, modules(case.loaded.model))}
    made = [{*map(id, modules(model))} - dense for model in (first, second, other)]
    assert made[0]
    assert not made[0] & made[1]
    assert not (made[0] | made[1]) & made[2]
