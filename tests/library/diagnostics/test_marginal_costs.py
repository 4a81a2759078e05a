"""Marginal costs against plain slicing; swaps and plan differences by hand."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from test_rank_agreement import known_profile
from test_sensitivity import divergences_at_once

from intraslice.core.config import SliceConfig
from intraslice.core.errors import UserError
from intraslice.diagnostics.marginal_costs import (
    MarginalCost,
    MarginalCosts,
    divergence_change,
    find_best_swap,
    measure_marginal_costs,
    parameters_kept,
    plan_differences,
    predicted_cost,
    step_around,
    swap_parameters,
)
from intraslice.diagnostics.sensitivity import cut_alone
from intraslice.evaluation.perplexity import Estimate
from intraslice.planning.profile import MASKED_FRACTION
from intraslice.planning.ratios import make_plan
from intraslice.slicing.driver import slice_model

pytestmark = pytest.mark.usefixtures("own_cache")


def test_a_marginal_cost_is_the_divergence_between_two_cuts_over_their_parameters(family_case):
    loaded, stats, tokens = family_case.loaded, family_case.stats, family_case.tokens[:4, :20]
    plan = make_plan(stats.profile, SliceConfig(0.4, order="one-shot"))
    sliced = slice_model(loaded.model, plan, stats, progress=False)
    costs = measure_marginal_costs(loaded, stats, sliced, plan, tokens, progress=False)
    whole = divergences_at_once(loaded.model, sliced, tokens).mean().item()
    assert costs.divergence.value == pytest.approx(whole, rel=1e-3)
    assert len(costs.modules) == 6
    for cost in costs.modules:
        distances, sizes = [], []
        for ratio in (cost.less, cost.more):
            layers = list(plan.layers)
            layers[cost.layer] = cut_alone(layers[cost.layer], stats.profile.layers[cost.layer], cost.module, ratio)
            cut = slice_model(loaded.model, replace(plan, layers=tuple(layers)), stats, progress=False)
            distances.append(divergences_at_once(loaded.model, cut, tokens).mean().item())
            sizes.append(sum(p.numel() for p in cut.parameters()))
        assert cost.less <= cost.ratio <= cost.more
        assert cost.parameters == sizes[0] - sizes[1] > 0
        assert cost.estimate().value * cost.parameters == pytest.approx(distances[1] - distances[0], abs=1e-5)
    removed = sum(cost.removed for cost in costs.modules)
    assert removed == plan.parameters.dense_decoder - plan.parameters.sliced_decoder
    again = measure_marginal_costs(loaded, stats, sliced, plan, tokens, progress=False)  # kept
    assert again == costs


@pytest.mark.parametrize("ratio", [0.0, 0.01, 0.5, 0.94])
@pytest.mark.parametrize("module", ["attention", "mlp"])
def test_between_the_ends_of_a_step_parameters_are_removed(family_case, module, ratio):
    layer = family_case.stats.profile.layers[0]
    less, more = step_around(layer, module, ratio)
    assert 0 <= less <= ratio <= more <= 0.95
    dense = make_plan(family_case.stats.profile, SliceConfig(0.0)).layers[0]
    kept = [parameters_kept(layer, cut_alone(dense, layer, module, end), module) for end in (less, more)]
    assert kept[0] > kept[1]


def test_a_predicted_cost_is_importance_over_parameters(tiny_case):
    profile = known_profile(tiny_case("llama-gqa"), [1.0, 2.0, 3.0])
    mlp = MarginalCost(1, "mlp", 0.5, 0.25, 0.75, 100, 0, 0, ())
    assert predicted_cost(mlp, profile, "pca") == pytest.approx(0.5 * 132 * 2.0 / 100)
    attention = replace(mlp, module="attention")
    assert predicted_cost(attention, profile, "pca") == pytest.approx(0.5 * 72 * 2.0 / 100 / MASKED_FRACTION)


def by_hand(*values: tuple[float, float], removed: int = 50) -> MarginalCosts:
    modules = [
        MarginalCost(index, "mlp", 0.5, 0.4, 0.6, 20, removed, 100 - removed, windows)
        for index, windows in enumerate(values)
    ]
    return MarginalCosts(Estimate(1.0, 0.1), 10, 1000, tuple(modules))


def test_a_swap_by_hand():
    costs = by_hand((0.1, 0.3), (0.5, 0.5), (0.7, 0.9))
    best = find_best_swap(costs)
    assert (best.source.layer, best.target.layer, best.parameters) == (0, 2, 10)  # 1 % of 1000
    assert best.change == pytest.approx((10 * (0.2 - 0.8), 0.0))
    value, error = swap_parameters(costs, costs.modules[1], costs.modules[0]).change
    assert (value, error) == pytest.approx((3.0, 1.0))  # windows give 4 and 2
    assert swap_parameters(by_hand((0.1, 0.3), (0.5, 0.5), removed=7), *costs.modules[:2]).parameters == 10
    few = by_hand((0.1, 0.3), (0.5, 0.5), removed=7)
    assert swap_parameters(few, *few.modules).parameters == 7  # no more than was taken from it


def test_a_swap_takes_nothing_from_a_module_at_the_cap_and_adds_nothing_to_a_dense_one():
    costs = by_hand((0.1, 0.1), (0.5, 0.5), (0.9, 0.9))
    modules = list(costs.modules)
    modules[0] = replace(modules[0], ratio=0.8)
    modules[2] = replace(modules[2], removed=0)
    best = find_best_swap(replace(costs, modules=tuple(modules)))
    assert (best.source.layer, best.target.layer) == (1, 1)
    assert find_best_swap(by_hand((0.1, 0.1), removed=0)) is None


def test_plans_of_equal_size_differ_where_their_parameters_do(family_case):
    profile = family_case.stats.profile
    plan, other = (make_plan(profile, SliceConfig(0.3, name)) for name in ("pca", "uniform"))
    found = plan_differences(plan, other, profile)
    assert sum(one.parameters for one in found) == plan.parameters.sliced_decoder - other.parameters.sliced_decoder
    sizes = [abs(one.parameters) for one in found]
    assert sizes == sorted(sizes, reverse=True)
    assert not any(one.parameters for one in plan_differences(plan, plan, profile))
    first = found[0]
    assert (first.parameters > 0) == (first.other > first.ratio)
    with pytest.raises(UserError, match="must remove the same fraction"):
        plan_differences(plan, make_plan(profile, SliceConfig(0.5)), profile)


def test_another_plan_changes_kl_by_costs_times_parameters(tiny_case):
    profile = tiny_case("llama-gqa").stats.profile
    plan, other = (make_plan(profile, SliceConfig(0.3, name)) for name in ("pca", "uniform"))
    found = plan_differences(plan, other, profile)
    generator = torch.Generator().manual_seed(0)
    modules = [
        MarginalCost(layer, module, 0.3, 0.2, 0.4, 10, 5, 5, tuple(torch.rand(3, generator=generator).tolist()))
        for layer in range(3)
        for module in ("attention", "mlp")
    ]
    costs = MarginalCosts(Estimate(1.0, 0.1), 10, 1000, tuple(modules))
    change = divergence_change(costs, found)
    parameters = {(one.layer, one.module): one.parameters for one in found}
    expected = sum(parameters[cost.layer, cost.module] * cost.estimate().value for cost in modules)
    assert change.value == pytest.approx(expected)
