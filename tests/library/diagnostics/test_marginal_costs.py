"""Marginal prices against plain slicing; exchanges and disagreements by hand."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from test_rank_agreement import known_profile
from test_sensitivity import divergences_at_once

from intraslice.core.config import SliceConfig
from intraslice.core.errors import UserError
from intraslice.diagnostics.prices import (
    Price,
    Prices,
    best_exchange,
    cost_of,
    disagreements,
    exchange,
    measure_prices,
    parameters_kept,
    predicted_price,
    step_around,
)
from intraslice.diagnostics.sensitivity import cut_alone
from intraslice.evaluation.perplexity import Estimate
from intraslice.planning.profile import MASKED_SHARE
from intraslice.planning.ratios import make_plan
from intraslice.slicing.driver import slice_model

pytestmark = pytest.mark.usefixtures("own_cache")


def test_a_price_is_the_divergence_between_two_cuts_over_their_parameters(family_case):
    loaded, stats, tokens = family_case.loaded, family_case.stats, family_case.tokens[:4, :20]
    plan = make_plan(stats.profile, SliceConfig(0.4, order="one-shot"))
    sliced = slice_model(loaded.model, plan, stats, progress=False)
    prices = measure_prices(loaded, stats, sliced, plan, tokens, progress=False)
    whole = divergences_at_once(loaded.model, sliced, tokens).mean().item()
    assert prices.divergence.value == pytest.approx(whole, rel=1e-3)
    assert len(prices.modules) == 6
    for price in prices.modules:
        distances, sizes = [], []
        for ratio in (price.less, price.more):
            layers = list(plan.layers)
            layers[price.layer] = cut_alone(layers[price.layer], stats.profile.layers[price.layer], price.module, ratio)
            cut = slice_model(loaded.model, replace(plan, layers=tuple(layers)), stats, progress=False)
            distances.append(divergences_at_once(loaded.model, cut, tokens).mean().item())
            sizes.append(sum(p.numel() for p in cut.parameters()))
        assert price.less <= price.ratio <= price.more
        assert price.parameters == sizes[0] - sizes[1] > 0
        assert price.estimate().value * price.parameters == pytest.approx(distances[1] - distances[0], abs=1e-5)
    removed = sum(price.removed for price in prices.modules)
    assert removed == plan.parameters.dense_decoder - plan.parameters.sliced_decoder
    again = measure_prices(loaded, stats, sliced, plan, tokens, progress=False)  # kept
    assert again == prices


@pytest.mark.parametrize("ratio", [0.0, 0.01, 0.5, 0.94])
@pytest.mark.parametrize("module", ["attention", "mlp"])
def test_between_the_ends_of_a_step_parameters_go(family_case, module, ratio):
    layer = family_case.stats.profile.layers[0]
    less, more = step_around(layer, module, ratio)
    assert 0 <= less <= ratio <= more <= 0.95
    dense = make_plan(family_case.stats.profile, SliceConfig(0.0)).layers[0]
    kept = [parameters_kept(layer, cut_alone(dense, layer, module, end), module) for end in (less, more)]
    assert kept[0] > kept[1]


def test_a_foretold_price_is_importance_over_parameters(tiny_case):
    profile = known_profile(tiny_case("llama-gqa"), [1.0, 2.0, 3.0])
    mlp = Price(1, "mlp", 0.5, 0.25, 0.75, 100, 0, 0, ())
    assert predicted_price(mlp, profile, "pca") == pytest.approx(0.5 * 132 * 2.0 / 100)
    attention = replace(mlp, module="attention")
    assert predicted_price(attention, profile, "pca") == pytest.approx(0.5 * 72 * 2.0 / 100 / MASKED_SHARE)


def by_hand(*values: tuple[float, float], removed: int = 50) -> Prices:
    modules = [
        Price(index, "mlp", 0.5, 0.4, 0.6, 20, removed, 100 - removed, windows) for index, windows in enumerate(values)
    ]
    return Prices(Estimate(1.0, 0.1), 10, 1000, tuple(modules))


def test_an_exchange_by_hand():
    prices = by_hand((0.1, 0.3), (0.5, 0.5), (0.7, 0.9))
    best = best_exchange(prices)
    assert (best.giver.layer, best.taker.layer, best.parameters) == (0, 2, 10)  # 1 % of 1000
    assert best.change == pytest.approx((10 * (0.2 - 0.8), 0.0))
    value, error = exchange(prices, prices.modules[1], prices.modules[0]).change
    assert (value, error) == pytest.approx((3.0, 1.0))  # windows give 4 and 2
    assert exchange(by_hand((0.1, 0.3), (0.5, 0.5), removed=7), *prices.modules[:2]).parameters == 10
    few = by_hand((0.1, 0.3), (0.5, 0.5), removed=7)
    assert exchange(few, *few.modules).parameters == 7  # no more than was taken from it


def test_a_module_at_the_cap_gives_no_more_and_a_dense_one_takes_nothing():
    prices = by_hand((0.1, 0.1), (0.5, 0.5), (0.9, 0.9))
    modules = list(prices.modules)
    modules[0] = replace(modules[0], ratio=0.8)
    modules[2] = replace(modules[2], removed=0)
    best = best_exchange(replace(prices, modules=tuple(modules)))
    assert (best.giver.layer, best.taker.layer) == (1, 1)
    assert best_exchange(by_hand((0.1, 0.1), removed=0)) is None


def test_plans_of_equal_size_disagree_where_their_parameters_differ(family_case):
    profile = family_case.stats.profile
    plan, other = (make_plan(profile, SliceConfig(0.3, name)) for name in ("pca", "uniform"))
    found = disagreements(plan, other, profile)
    assert sum(one.parameters for one in found) == plan.parameters.sliced_decoder - other.parameters.sliced_decoder
    sizes = [abs(one.parameters) for one in found]
    assert sizes == sorted(sizes, reverse=True)
    assert not any(one.parameters for one in disagreements(plan, plan, profile))
    first = found[0]
    assert (first.parameters > 0) == (first.other > first.ratio)
    with pytest.raises(UserError, match="of one size"):
        disagreements(plan, make_plan(profile, SliceConfig(0.5)), profile)


def test_going_over_to_another_plan_costs_prices_times_parameters(tiny_case):
    profile = tiny_case("llama-gqa").stats.profile
    plan, other = (make_plan(profile, SliceConfig(0.3, name)) for name in ("pca", "uniform"))
    found = disagreements(plan, other, profile)
    generator = torch.Generator().manual_seed(0)
    modules = [
        Price(layer, module, 0.3, 0.2, 0.4, 10, 5, 5, tuple(torch.rand(3, generator=generator).tolist()))
        for layer in range(3)
        for module in ("attention", "mlp")
    ]
    prices = Prices(Estimate(1.0, 0.1), 10, 1000, tuple(modules))
    change = cost_of(prices, found)
    parameters = {(one.layer, one.module): one.parameters for one in found}
    expected = sum(parameters[price.layer, price.module] * price.estimate().value for price in modules)
    assert change.value == pytest.approx(expected)
