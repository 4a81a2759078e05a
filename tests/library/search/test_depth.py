"""The search for modules to remove: it finds the best ones, measures the model without them, and keeps the size."""

from __future__ import annotations

import copy
from dataclasses import replace
from statistics import fmean

import pytest
import torch
from stopping import Stopped, stop_when
from torch.testing import assert_close

from intraslice.core.cache import cache_path
from intraslice.core.config import SliceConfig
from intraslice.core.errors import UserError
from intraslice.evaluation.perplexity import DenseStates, measure_losses
from intraslice.methods.registry import plan_by, slice_by
from intraslice.modeling.families import blocks
from intraslice.search import measure as measure_module
from intraslice.search.evolution import SearchConfig, State, narrowed, next_depth, whole_layers, whole_or_removed
from intraslice.search.measure import Candidates
from intraslice.search.ratio_search import SearchResult, search_depth

pytestmark = pytest.mark.usefixtures("own_cache")
FEW = SearchConfig(passes=3, windows=1)


class Rigged:
    """Damages that add up, by removed module."""

    def __init__(self, damages) -> None:
        self.damages = damages

    def divergence(self, allocation, windows) -> list[float]:
        return [sum(damage for damage, level in zip(self.damages, allocation, strict=True) if level)] * len(windows)

    def costs(self, allocation, alternatives, windows) -> dict:
        raise AssertionError("depth pruning predicts nothing")


def test_the_modules_that_do_the_least_damage_are_found() -> None:
    damages = (5, 1, 3, 8, 2, 4, 6, 7, 1, 3, 4, 9)  # attention and MLP in turn
    removed_attention, removed_mlps = {4, 8}, {1, 9}
    state = State((1, 1, 1, 1) + (0,) * 8)
    for _ in range(40):
        state = next_depth(state, Rigged(damages), SearchConfig(), 1)
        assert [sum(state.allocation[kind::2]) for kind in range(2)] == [2, 2]
    assert {module for module, level in enumerate(state.allocation) if level} == removed_attention | removed_mlps


def test_children_of_a_parent_with_one_module_of_a_kind_differ_from_it() -> None:
    seen = set()

    class Seen(Rigged):
        def divergence(self, allocation, windows):
            seen.add(allocation)
            return super().divergence(allocation, windows)

    next_depth(State((1, 1, 0, 0)), Seen((1,) * 4), SearchConfig(), 1)
    assert seen - {(1, 1, 0, 0)} == {(0, 1, 1, 0), (1, 0, 0, 1), (0, 0, 1, 1)}


def sliced(case, ratios, sparsity: float):
    """The plan and the model with these ratios of whole modules; others are narrowed until the size is right."""
    locked = tuple((layer, kind, ratio) for (layer, kind), ratio in ratios.items() if ratio in (0, 1))
    plan = plan_by("shortgpt", case.loaded.model, case.stats, SliceConfig(sparsity, locked=locked))
    return plan, slice_by("shortgpt", case.loaded.model, plan, case.stats, case.tokens, progress=False)


@torch.no_grad()
@pytest.mark.parametrize("name", ["llama-gqa", "phi", "gemma3"])
def test_a_candidate_measures_the_model_without_these_modules(tiny_case, name, monkeypatch) -> None:
    monkeypatch.setattr(measure_module, "LARGEST", 10**6)  # all but one: nothing is merged
    case = tiny_case(name)
    candidates = Candidates(case.loaded.model, case.stats, whole_or_removed(case.stats.sizes), case.tokens[:4])
    removed = [(0, "mlp"), (1, "attention")]
    allocation = tuple(int(module in removed) for module in candidates.levels.modules)
    dense, left = (
        candidates.levels.parameters(one) + sum(size.fixed for size in case.stats.sizes)
        for one in ((0,) * len(allocation), allocation)
    )
    plan, model = sliced(case, candidates.levels.ratios(allocation), 1 - left / dense)
    assert plan.parameters.sliced_decoder == left
    assert len(blocks(model)[1].attention.weights().kv_head) == 0
    losses = measure_losses(model, case.tokens[:4], dense=DenseStates(case.loaded.model), progress=False)
    assert fmean(candidates.divergence(allocation, range(4))) == pytest.approx(losses.divergence().value, rel=1e-3)
    if name == "llama-gqa":  # by hand
        shorter = copy.deepcopy(case.loaded.model)
        for linear in (blocks(shorter)[0].mlp.down_proj, blocks(shorter)[1].attention.o_proj):
            linear.weight.zero_()
        assert_close(model(case.tokens[:2]).logits, shorter(case.tokens[:2]).logits)


@torch.no_grad()
def test_the_result_is_a_model_of_the_required_size(tiny_case) -> None:
    case = tiny_case("llama-gqa")
    found = search_depth(case.loaded, case.stats, case.tokens, 0.4, FEW, progress=False)
    assert found.passes >= 3
    assert all(change <= 0 for change in found.changes)
    plan, model = sliced(case, found.ratios, 0.4)
    assert plan.removed_fraction == pytest.approx(0.4, abs=0.01)
    assert sum(p.numel() for p in model.parameters()) == plan.parameters.sliced_total
    assert model(case.tokens[:2]).logits.isfinite().all()
    count, rest = whole_layers(case.stats.sizes, 0.4)
    for kind in ("attention", "mlp"):
        ratios = [ratio for (_, module), ratio in found.ratios.items() if module == kind]
        assert sorted(ratios) == [0.0] * (len(ratios) - count - 1) + [rest] + [1.0] * count


def test_a_stopped_search_goes_on_and_one_with_more_passes_continues_a_shorter_one(tiny_case) -> None:
    case = tiny_case("llama-gqa")

    def run(passes: float, progress=False) -> SearchResult:
        search = SearchConfig(passes, windows=1, seed=int(passes) % 2)
        return search_depth(case.loaded, case.stats, case.tokens, 0.4, search, progress=progress)

    with pytest.raises(Stopped):
        run(5, stop_when(lambda event: event.done == 2))
    resumed = run(5)
    assert run(3).changes == resumed.changes[: len(run(3).changes)]
    cache_path("search", ".json", "any").parent.rename(cache_path("search", ".json", "any").parent.with_name("old"))
    assert run(5) == resumed


def test_the_narrowed_modules_are_of_one_layer_where_one_keeps_both() -> None:
    ratios = {(0, "attention"): 1.0, (0, "mlp"): 0.0, (1, "attention"): 0.0, (1, "mlp"): 0.0}
    assert narrowed(ratios, [0, 1]) == [(1, "attention"), (1, "mlp")]
    ratios[1, "mlp"] = 1.0
    assert narrowed(ratios, [0, 1]) == [(1, "attention"), (0, "mlp")]


def test_without_a_search_the_result_is_shortgpts(tiny_case) -> None:
    case = tiny_case("llama-gqa")
    found = search_depth(case.loaded, case.stats, case.tokens, 0.4, SearchConfig(0, windows=1), progress=False)
    plan = plan_by("shortgpt", case.loaded.model, case.stats, SliceConfig(0.4))
    for index, layer in enumerate(plan.layers):
        for kind, ratio in (("attention", layer.attention_ratio), ("mlp", layer.mlp_ratio)):
            assert found.ratios[index, kind] == pytest.approx(ratio, abs=0.05)


def test_a_sparsity_that_removes_no_layer_or_all_of_them_is_refused(tiny_case) -> None:
    case = tiny_case("llama-gqa")
    for sparsity in (0.05, 0.999):
        with pytest.raises(UserError, match=f"removes a layer or more and keeps one, got {sparsity}"):
            search_depth(case.loaded, case.stats, case.tokens, sparsity, FEW, progress=False)
    larger = replace(case.stats.sizes[0], neurons=2 * case.stats.sizes[0].neurons)
    with pytest.raises(UserError, match="layers of equal size, got 2"):
        whole_layers([larger, *case.stats.sizes[1:]], 0.4)
