"""The searches for ratios and for modules to remove: the best is found, at equal size, and goes on where it stopped.

And the choice of an estimator: the best is chosen, within its cost, on windows that nothing else reads, and once.
"""

import copy
import itertools
import json
import math
from dataclasses import replace
from statistics import fmean
from unittest.mock import Mock

import pytest
import torch
from refusing import refused
from stopping import Stopped, stop_at, stop_when
from tiny_models import divergences_at_once
from torch.testing import assert_close

from intraslice.calibration.driver import calibrate
from intraslice.core.config import SliceConfig
from intraslice.core.progress import ignore_progress
from intraslice.core.registry import ESTIMATORS
from intraslice.modeling.families import blocks
from intraslice.planning.estimators import Estimator, Importances
from intraslice.planning.ratios import make_plan
from intraslice.samples import TEMPERATURE, kept_samples
from intraslice.search import choice as choice_module
from intraslice.search import measure as measure_module
from intraslice.search import ratio_search as module
from intraslice.search.choice import PASSES, Choice, choose_estimator
from intraslice.search.evolution import (
    Level,
    Levels,
    Problem,
    SearchConfig,
    State,
    narrowed,
    next_depth,
    next_state,
    whole_layers,
    whole_or_removed,
)
from intraslice.search.measure import Candidates
from intraslice.search.ratio_search import SearchResult, planned_ratios, problem_of, search_depth, search_ratios
from intraslice.slicing import one_shot
from intraslice.slicing.one_shot import SliceCache

pytestmark = pytest.mark.usefixtures("own_cache")
CONFIG = SliceConfig(0.3, order="one-shot")
FEW = SearchConfig(passes=4, children=3, windows=1)


class Rigged:
    """Damages from a table, by module and level, whatever the windows; costs without a hint, or exact ones."""

    def __init__(self, table, hints) -> None:
        self.table, self.hints = table, hints

    def damage(self, allocation) -> float:
        return sum(self.table[module][level] for module, level in enumerate(allocation))

    def divergence(self, allocation, windows) -> list[float]:
        return [self.damage(allocation)] * len(windows)

    def costs(self, allocation, alternatives, windows) -> dict:
        return {
            (module, level): self.hints * (self.table[module][level] - self.table[module][allocation[module]])
            for module, levels in alternatives.items()
            for level in levels
        }


@pytest.mark.parametrize("hints", [1.0, 0.0])
def test_the_best_plan_of_a_rigged_table_is_found_with_and_without_hints(hints) -> None:
    modules = tuple((layer, kind) for layer in range(2) for kind in ("attention", "mlp"))
    levels = Levels(modules, (tuple(Level(level / 8, 100 * (8 - level)) for level in range(8)),) * 4)
    weights = (1.0, 5.0, 0.3, 2.0)
    table = [[weight * level**2 for level in range(8)] for weight in weights]
    problem = Problem(levels, ((0, 7),) * 4, 100 * (32 - 12), 3200)
    measures, state = Rigged(table, hints), State((3, 3, 3, 3))
    best = min((one for one in itertools.product(range(8), repeat=4) if sum(one) == 12), key=measures.damage)
    for _ in range(30):
        state = next_state(problem, state, measures, SearchConfig(), 1)
        assert levels.parameters(state.allocation) == problem.parameters
    assert state.allocation == best


@pytest.mark.parametrize("name", ["llama-gqa", "phi", "gemma3"])
def test_a_candidate_measures_what_a_whole_slice_does(tiny_case, name, monkeypatch) -> None:
    """The levels are those of plans, and a plan with the ratios of a level has exactly this level."""
    monkeypatch.setattr(measure_module, "LARGEST", 10**6)  # all but one: nothing is merged
    case = tiny_case(name)
    profile = case.stats.profile
    problem, start = problem_of(profile, CONFIG)
    candidates = Candidates(case.dense, case.stats, problem.levels, case.tokens[:4])
    for allocation in (start, tuple(max(0, level - 1) for level in start)):
        ratios = problem.levels.ratios(allocation)
        locked = tuple((index, kind, ratio) for (index, kind), ratio in ratios.items())
        fixed = profile.dense_decoder - problem.total
        left = problem.levels.parameters(allocation) + fixed
        plan = make_plan(profile, replace(CONFIG, sparsity=1 - left / profile.dense_decoder, locked=locked))
        divergences = divergences_at_once(case.dense, case.cut(plan), case.tokens[:4])
        assert fmean(candidates.divergence(allocation, range(4))) == pytest.approx(divergences.mean().item(), rel=1e-3)
        assert left == plan.parameters.sliced_decoder


def test_the_largest_entries_bound_the_divergence_from_below(case, monkeypatch) -> None:
    problem, start = problem_of(case.stats.profile, CONFIG)

    def measured(largest: int) -> float:
        monkeypatch.setattr(measure_module, "LARGEST", largest)
        candidates = Candidates(case.dense, case.stats, problem.levels, case.tokens[:2])
        return fmean(candidates.divergence(start, range(2)))

    few, more, whole = (measured(largest) for largest in (4, 32, 10**6))
    assert 0 < few < more < whole


@pytest.mark.parametrize("name", ["llama-gqa", "phi", "gemma3"])
def test_predicted_costs_are_the_derivative_of_the_divergence(tiny_case, name) -> None:
    """For an alternative whose output is a multiple of the module's, against the symmetric difference of the logs."""
    case = tiny_case(name)
    problem, start = problem_of(case.stats.profile, replace(CONFIG, sparsity=0.6))
    candidates = Candidates(case.dense, case.stats, problem.levels, case.tokens[:4])
    for number in range(len(start)):
        sliced = candidates._module(number, start[number])
        other = 0 if start[number] else 1
        allocation = (*start[:number], other, *start[number + 1 :])
        measured = []
        for factor in (0.98, 1.02):
            candidates._modules[number, other] = copied = copy.deepcopy(sliced)
            (copied.down_proj if number % 2 else copied.o_proj).weight.data.mul_(factor)
            measured.append(fmean(map(math.log, candidates.divergence(allocation, range(4)))))
        predicted = candidates.costs(start, {number: [other]}, range(4))[number, other]
        assert (measured[1] - measured[0]) / 2 == pytest.approx(predicted, rel=0.05, abs=1e-5)


def test_a_stopped_search_goes_on_to_the_same_bytes_and_keeps_the_size(case, monkeypatch) -> None:
    written: list[str] = []
    write = module.write_record

    def write_record(path, record, what) -> None:
        written.append(json.dumps(record))
        write(path, record, what)

    def run(progress, **changes) -> SearchResult:
        search = replace(FEW, **changes)
        return search_ratios(case.loaded, case.stats, case.tokens, CONFIG, search=search, progress=progress)

    monkeypatch.setattr(module, "write_record", write_record)

    with pytest.raises(Stopped):
        run(stop_when(lambda event: len(written) == 2))
    resumed, shorter = run(False), run(False, passes=2)
    first_run, written = written, []
    monkeypatch.setattr(module, "read_record", lambda path: {})
    assert run(False) == resumed
    assert written == first_run
    assert run(False, passes=2) == shorter
    assert shorter.passes < resumed.passes
    assert resumed.after < resumed.before
    assert resumed.accepted > 0
    problem, start = problem_of(case.stats.profile, CONFIG)
    for record in written:
        assert problem.is_equal(State.parse(json.loads(record)["states"][-1]).allocation, start)
    assert run(False, seed=1).ratios != resumed.ratios


def test_other_sparsities_bound_the_ratios(case) -> None:
    profile = case.stats.profile

    def result(sparsity: float) -> SearchResult:
        ratios = planned_ratios(profile, replace(CONFIG, sparsity=sparsity))
        return SearchResult(sparsity, ratios, 0.0, 0.0, 0.0, ())

    problem, start = problem_of(profile, CONFIG, [result(0.2), result(0.5)])
    smaller, larger = (problem.levels.at_ratios(result(sparsity).ratios) for sparsity in (0.2, 0.5))
    assert problem.bounds == tuple(zip(smaller, larger, strict=True))
    assert all(low <= level <= high for level, (low, high) in zip(start, problem.bounds, strict=True))
    finest = min(layer.sizes.neuron_cost * 8 for layer in profile.layers)
    assert abs(problem.levels.parameters(start) - problem.parameters) <= finest


@pytest.mark.parametrize(
    ("windows", "config"),
    [
        (6, CONFIG),
        (16, replace(CONFIG, shapes="runtime")),
        (16, replace(CONFIG, locked=((0, "mlp", 0.2),))),
        (16, replace(CONFIG, estimator="uniform")),
    ],
)
def test_what_cannot_be_searched_is_refused_before_any_work(case, windows, config) -> None:
    given = case.loaded, case.stats, case.tokens[:windows], config
    assert "the search requires" in refused(search_ratios, *given, search=FEW, progress=stop_at(1))


SHORT = SearchConfig(passes=3, windows=1)


def test_the_modules_that_do_the_least_damage_are_found() -> None:
    damages = (5, 1, 3, 8, 2, 4, 6, 7, 1, 3, 4, 9)  # attention and MLP in turn
    removed_attention, removed_mlps = {4, 8}, {1, 9}
    state = State((1, 1, 1, 1) + (0,) * 8)
    for _ in range(40):
        state = next_depth(state, Rigged([(0, damage) for damage in damages], 0.0), SearchConfig(), 1)
        assert [sum(state.allocation[kind::2]) for kind in range(2)] == [2, 2]
    assert {module for module, level in enumerate(state.allocation) if level} == removed_attention | removed_mlps


def test_children_of_a_parent_with_one_module_of_a_kind_differ_from_it_and_narrowed_ones_are_of_one_layer() -> None:
    seen = set()

    class Seen(Rigged):
        def divergence(self, allocation, windows):
            seen.add(allocation)
            return super().divergence(allocation, windows)

    next_depth(State((1, 1, 0, 0)), Seen([(0, 1)] * 4, 0.0), SearchConfig(), 1)
    assert seen - {(1, 1, 0, 0)} == {(0, 1, 1, 0), (1, 0, 0, 1), (0, 0, 1, 1)}
    ratios = {(0, "attention"): 1.0, (0, "mlp"): 0.0, (1, "attention"): 0.0, (1, "mlp"): 0.0}
    assert narrowed(ratios, [0, 1]) == [(1, "attention"), (1, "mlp")]
    ratios[1, "mlp"] = 1.0
    assert narrowed(ratios, [0, 1]) == [(1, "attention"), (0, "mlp")]


def sliced(case, ratios, sparsity: float):
    """The plan and the model with these ratios of whole modules; others are narrowed until the size is right."""
    locked = tuple((layer, kind, ratio) for (layer, kind), ratio in ratios.items() if ratio in (0, 1))
    plan = case.plan(sparsity, "shortgpt", locked=locked)
    return plan, case.cut(plan, "shortgpt")


@pytest.mark.parametrize("name", ["llama-gqa", "phi", "gemma3"])
def test_a_candidate_measures_the_model_without_these_modules(tiny_case, name, monkeypatch) -> None:
    monkeypatch.setattr(measure_module, "LARGEST", 10**6)  # all but one: nothing is merged
    case = tiny_case(name)
    candidates = Candidates(case.dense, case.stats, whole_or_removed(case.stats.sizes), case.tokens[:4])
    removed = [(0, "mlp"), (1, "attention")]
    allocation = tuple(int(module in removed) for module in candidates.levels.modules)
    dense, left = (
        candidates.levels.parameters(one) + sum(size.fixed for size in case.stats.sizes)
        for one in ((0,) * len(allocation), allocation)
    )
    plan, model = sliced(case, candidates.levels.ratios(allocation), 1 - left / dense)
    assert plan.parameters.sliced_decoder == left
    assert len(blocks(model)[1].attention.weights().kv_head) == 0
    divergences = divergences_at_once(case.dense, model, case.tokens[:4])
    assert fmean(candidates.divergence(allocation, range(4))) == pytest.approx(divergences.mean().item(), rel=1e-3)
    if name == "llama-gqa":  # by hand
        shorter = copy.deepcopy(case.dense)
        for linear in (blocks(shorter)[0].mlp.down_proj, blocks(shorter)[1].attention.o_proj):
            linear.weight.zero_()
        assert_close(model(case.tokens[:2]).logits, shorter(case.tokens[:2]).logits)


def test_the_result_is_a_model_of_the_required_size(case) -> None:
    found = search_depth(case.loaded, case.stats, case.tokens, 0.4, SHORT, progress=False)
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


def test_a_stopped_search_goes_on_and_one_with_more_passes_continues_a_shorter_one(case, own_cache) -> None:
    def run(passes: float, progress=False) -> SearchResult:
        search = SearchConfig(passes, windows=1, seed=int(passes) % 2)
        return search_depth(case.loaded, case.stats, case.tokens, 0.4, search, progress=progress)

    with pytest.raises(Stopped):
        run(5, stop_when(lambda event: event.done == 2))
    resumed = run(5)
    assert run(3).changes == resumed.changes[: len(run(3).changes)]
    own_cache.rename(own_cache.with_name("old"))
    assert run(5) == resumed


def test_without_a_search_the_result_is_shortgpts(case) -> None:
    found = search_depth(case.loaded, case.stats, case.tokens, 0.4, SearchConfig(0, windows=1), progress=False)
    plan = case.plan(0.4, "shortgpt")
    for index, layer in enumerate(plan.layers):
        for kind, ratio in (("attention", layer.attention_ratio), ("mlp", layer.mlp_ratio)):
            assert found.ratios[index, kind] == pytest.approx(ratio, abs=0.05)


def test_a_sparsity_that_removes_no_layer_or_all_of_them_is_refused(case) -> None:
    for sparsity in (0.05, 0.999):
        message = refused(search_depth, case.loaded, case.stats, case.tokens, sparsity, SHORT)
        assert f"removes a layer or more and keeps one, got {sparsity}" in message
    larger = replace(case.stats.sizes[0], neurons=2 * case.stats.sizes[0].neurons)
    assert "layers of equal size, got 2" in refused(whole_layers, [larger, *case.stats.sizes[1:]], 0.4)


def reversed_importances(layer) -> Importances:
    """With which first goes what goes last with `pca`."""
    own = ESTIMATORS["pca"].importance(layer)
    return Importances(1 / own.attention, 1 / own.mlp)


def test_the_better_candidate_is_chosen_at_its_cost_on_unread_windows_and_only_once(case, own_estimators, monkeypatch):
    worst = ESTIMATORS.register(Estimator("worst", "", "", reversed_importances)).name
    monkeypatch.setattr(choice_module, "measure_losses", measure_losses := Mock(wraps=choice_module.measure_losses))
    tokens = torch.randint(3, 256, (40, 48), generator=torch.Generator().manual_seed(1))
    calibrated, text = tokens[:32], tokens[32:]
    stats = calibrate(case.loaded, calibrated, progress=False)
    runs: list[int] = []
    embedding = case.dense.model.embed_tokens
    handle = embedding.register_forward_hook(lambda _, inputs, output: runs.append(inputs[0].numel()))
    candidates = (worst, "fisher", "pca")
    choice = choose_estimator(case.loaded, stats, text, 3, candidates, progress=False)
    handle.remove()
    assert choice.name in ("fisher", "pca")
    assert choice.excess[worst][0] > 2 * choice.excess[worst][1] > 0
    measured = [call.args[1] for call in measure_losses.call_args_list]
    first, second = measured[0], measured[-1]
    assert [windows.equal(first) for windows in measured] == [True] * 3 + [False] * 2
    assert choice.passes * stats.tokens == sum(runs) + 3  # the last token of a sample is not run
    assert choice.passes <= PASSES
    samples = kept_samples(case.dense, (64, 48), TEMPERATURE, 3, ignore_progress)
    rows, unread, *read = (
        {*map(tuple, part.tolist())} for part in (torch.cat([first, second]), text, calibrated, samples)
    )
    assert len(rows & unread) * 2 == len(rows) == len(first) + len(second)
    assert not rows & (read[0] | read[1])

    assert SliceCache.where_it_fits(case.dense) is not None
    monkeypatch.setattr(one_shot, "available_bytes", lambda device: 7 * case.dense.model.layers[0].mlp.neurons ** 2)
    assert SliceCache.where_it_fits(case.dense) is None

    monkeypatch.setattr(choice_module, "slice_model", None)
    assert choose_estimator(case.loaded, stats, text, 3, candidates, progress=False) == choice
    with pytest.raises(TypeError):
        choose_estimator(case.loaded, stats, text, 4, candidates, progress=False)
    monkeypatch.setattr(choice_module, "size", lambda: 2)  # processes, which do not share it
    assert choose_estimator(case.loaded, stats, text, 4, progress=False) == Choice("pca", {}, 0.0)
