"""The search for modules to remove: it finds the best ones, measures the model without them, and keeps the size."""

from __future__ import annotations

import copy

import pytest
import torch

from intraslice.core.config import SliceConfig
from intraslice.core.errors import UserError
from intraslice.evaluation.divergence import DenseStates
from intraslice.evaluation.perplexity import measure_losses
from intraslice.methods.registry import plan_by, slice_by
from intraslice.modeling.families import blocks
from intraslice.search import measure as measure_module
from intraslice.search.depth import by_influence, next_depth, search_depth, whole_layers, whole_or_removed
from intraslice.search.evolution import SearchConfig, State
from intraslice.search.measure import Candidates

pytestmark = pytest.mark.usefixtures("own_cache")
FEW = SearchConfig(passes=3, windows=1)


class Rigged:
    """Damages that add up, by removed module."""

    def __init__(self, damages) -> None:
        self.damages = damages

    def divergence(self, allocations, windows) -> list[list[float]]:
        return [
            [sum(damage for damage, level in zip(self.damages, one, strict=True) if level)] * len(windows)
            for one in allocations
        ]


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
        def divergence(self, allocations, windows):
            seen.update(allocations[1:])
            return super().divergence(allocations, windows)

    next_depth(State((1, 1, 0, 0)), Seen((1,) * 4), SearchConfig(), 1)
    assert seen == {(0, 1, 1, 0), (1, 0, 0, 1), (0, 0, 1, 1)}


@torch.no_grad()
@pytest.mark.parametrize("name", ["llama-gqa", "gemma3"])
def test_a_candidate_measures_the_model_without_these_modules(tiny_case, name, monkeypatch) -> None:
    monkeypatch.setattr(measure_module, "LARGEST", 10**6)  # all but one: nothing is merged
    case = tiny_case(name)
    candidates = Candidates(case.loaded.model, case.stats, whole_or_removed(case.stats.sizes), case.tokens[:4])
    removed = [(0, "mlp"), (1, "attention")]
    allocation = tuple(int(module in removed) for module in candidates.levels.modules)
    shorter = copy.deepcopy(case.loaded.model)
    for linear in (blocks(shorter)[0].mlp.down_proj, blocks(shorter)[1].attention.o_proj):
        linear.weight.zero_()
    losses = measure_losses(shorter, case.tokens[:4], dense=DenseStates(case.loaded.model), progress=False)
    measured = candidates.divergence(allocation, range(4)).mean()
    assert measured == pytest.approx(losses.divergence().value, rel=1e-3)


@torch.no_grad()
def test_the_result_is_a_model_of_the_required_size(tiny_case) -> None:
    case = tiny_case("llama-gqa")
    found = search_depth(case.loaded, case.stats, case.tokens, 0.4, FEW, progress=False)
    assert found == search_depth(case.loaded, case.stats, case.tokens, 0.4, FEW, progress=False)
    assert found.passes >= 3
    assert found.after <= found.before
    locked = tuple((layer, kind, ratio) for (layer, kind), ratio in found.ratios.items() if ratio in (0, 1))
    assert len(locked) == 2 * len(case.stats.layers) - 2
    plan = plan_by("shortgpt", case.loaded.model, case.stats, SliceConfig(0.4, locked=locked))
    model = slice_by("shortgpt", case.loaded.model, plan, case.stats, case.tokens, progress=False)
    assert plan.removed_fraction == pytest.approx(0.4, abs=0.01)
    assert sum(p.numel() for p in model.parameters()) == plan.parameters.sliced_total
    assert model(case.tokens[:2]).logits.isfinite().all()
    count, _ = whole_layers(case.stats.sizes, by_influence(case.stats), 0.4)
    for kind in ("attention", "mlp"):
        assert sum(ratio == 1 for (_, module), ratio in found.ratios.items() if module == kind) == count


def test_without_a_search_the_result_is_shortgpts(tiny_case) -> None:
    case = tiny_case("llama-gqa")
    found = search_depth(case.loaded, case.stats, case.tokens, 0.4, SearchConfig(0, windows=1), progress=False)
    plan = plan_by("shortgpt", case.loaded.model, case.stats, SliceConfig(0.4))
    for index, layer in enumerate(plan.layers):
        for kind, ratio in (("attention", layer.attention_ratio), ("mlp", layer.mlp_ratio)):
            assert found.ratios[index, kind] == pytest.approx(ratio, abs=0.05)


def test_a_sparsity_that_removes_no_layer_or_all_of_them_is_refused(tiny_case) -> None:
    case = tiny_case("llama-gqa")
    for sparsity, words in ((0.05, "removes a layer or more, got 0.05"), (0.999, "keeps a layer or more, got 0.999")):
        with pytest.raises(UserError, match=words):
            search_depth(case.loaded, case.stats, case.tokens, sparsity, FEW, progress=False)
