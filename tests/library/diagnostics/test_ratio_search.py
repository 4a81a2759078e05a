"""Exchanges of parameters between modules: the size stays, what stays is better, and a stopped run goes on."""

from __future__ import annotations

import random
from dataclasses import replace

import pytest
from stopping import Stopped, stop_when

from intraslice.core.config import SliceConfig
from intraslice.core.errors import UserError
from intraslice.core.progress import Progress
from intraslice.diagnostics import ratio_search as module
from intraslice.diagnostics.marginal_costs import parameters_at
from intraslice.diagnostics.ratio_search import SIZE_TOLERANCE, SearchResult, SwapSampler, Trials, search_ratios
from intraslice.evaluation.divergence import DenseStates
from intraslice.evaluation.perplexity import measure_losses
from intraslice.planning.ratios import SlicePlan, make_plan
from intraslice.slicing.driver import slice_model

pytestmark = pytest.mark.usefixtures("own_cache")
CONFIG = SliceConfig(0.3, order="one-shot")


@pytest.fixture
def coarse(monkeypatch):
    """A tiny model's sizes go in steps of some per cent of it."""
    monkeypatch.setattr(module, "AMOUNTS", (0.02, 0.05))
    monkeypatch.setattr(module, "SIZE_TOLERANCE", 0.03)


def total(profile, ratios) -> int:
    return sum(parameters_at(profile.layers[index], kind, ratio) for (index, kind), ratio in ratios.items())


def plan_of(profile, ratios) -> SlicePlan:
    """The plan that has these ratios, given by hand."""
    locked = tuple((index, kind, ratio) for (index, kind), ratio in ratios.items())
    return make_plan(profile, replace(CONFIG, locked=locked))


def divergence(case, ratios) -> float:
    """What a slice with these ratios measures, made whole and read whole."""
    sliced = slice_model(case.loaded.model, plan_of(case.stats.profile, ratios), case.stats, progress=False)
    losses = measure_losses(sliced, case.tokens[:4], dense=DenseStates(case.loaded.model), progress=False)
    return losses.divergence().value


def test_an_exchange_keeps_the_size_and_stays_within_its_bounds(tiny_case, coarse) -> None:
    profile = tiny_case("llama-gqa").stats.profile
    floor = SearchResult(
        0.2, {place: ratio / 2 for place, ratio in SwapSampler(profile, CONFIG).ratios.items()}, 0.0, 0.0, 0
    )
    budget, lot = SwapSampler(profile, replace(CONFIG, cap=0.6), [floor]), random.Random(0)
    wanted, several = total(profile, budget.ratios), set()
    for _ in range(60):
        drawn = budget.sample(lot)
        assert len(drawn) == 2
        budget.ratios |= drawn
        several |= set(drawn)
        assert abs(total(profile, budget.ratios) - wanted) <= module.SIZE_TOLERANCE * profile.dense_decoder
        assert all(floor.ratios[place] <= ratio <= 0.6 for place, ratio in budget.ratios.items())
    assert len(several) > 3
    assert SIZE_TOLERANCE < 0.001


def test_a_larger_sparsity_goes_on_from_a_smaller_ones_ratios(tiny_case) -> None:
    profile = tiny_case("llama-gqa").stats.profile
    smaller = SearchResult(0.2, SwapSampler(profile, replace(CONFIG, sparsity=0.2)).ratios, 0.0, 0.0, 0)
    larger = SwapSampler(profile, replace(CONFIG, sparsity=0.4), [smaller]).ratios
    plan = make_plan(profile, replace(CONFIG, sparsity=0.4))
    assert all(ratio >= smaller.ratios[place] for place, ratio in larger.items())
    assert total(profile, larger) == pytest.approx(plan.parameters.sliced_decoder, rel=0.02)


def test_what_stays_lowers_the_divergence_that_a_whole_slice_measures(tiny_case, coarse) -> None:
    case = tiny_case("llama-gqa")
    first = SwapSampler(case.stats.profile, CONFIG).ratios
    found = search_ratios(case.loaded, case.stats, case.tokens[:4], CONFIG, trials=Trials(25), progress=False)
    assert 0 < found.stayed < 25
    assert found.after < found.before
    assert found.before == pytest.approx(divergence(case, first), rel=1e-4)
    assert found.after == pytest.approx(divergence(case, found.ratios), rel=1e-4)


def test_a_stopped_run_goes_on_where_it_was_and_a_longer_one_too(tiny_case, coarse, monkeypatch) -> None:
    case = tiny_case("phi")
    monkeypatch.setattr(module, "SAVE_EVERY", 4)

    def run(progress) -> SearchResult:
        return search_ratios(case.loaded, case.stats, case.tokens[:4], CONFIG, trials=Trials(12), progress=progress)

    with pytest.raises(Stopped):
        run(stop_when(lambda event: event.done == 6))
    events: list[Progress] = []
    resumed = run(events.append)
    assert events[0].done == 4
    monkeypatch.setattr(module, "read_record", lambda path: {})
    anew = run(False)
    assert resumed.ratios == anew.ratios
    assert (resumed.before, resumed.after) == pytest.approx((anew.before, anew.after))


@pytest.mark.parametrize(
    ("windows", "config"),
    [(1, CONFIG), (4, replace(CONFIG, shapes="runtime")), (4, replace(CONFIG, locked=((0, "mlp", 0.2),)))],
)
def test_what_cannot_be_exchanged_is_refused_before_any_work(tiny_case, windows, config) -> None:
    case = tiny_case("llama-gqa")
    with pytest.raises(UserError, match="the search requires"):
        search_ratios(case.loaded, case.stats, case.tokens[:windows], config, progress=stop_when(lambda _: True))
