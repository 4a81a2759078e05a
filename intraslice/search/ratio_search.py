"""The search for better ratios: start, generations and their journal, and the importances that reproduce the result.

An estimator predicts the importance of units from the dense model; the search measures modules *in a sliced model*. It
starts from the estimator's plan and never changes the number of parameters.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from statistics import fmean

import torch
from jaxtyping import Int
from torch import Tensor
from transformers import PreTrainedModel

from intraslice.calibration.stats import CalibrationStats
from intraslice.core.cache import cache_path, read_record, write_record
from intraslice.core.config import FREE, GRADIENT_GROUP, MODULE_KINDS, ModuleKind, SliceConfig
from intraslice.core.errors import UserError
from intraslice.core.progress import Progress, ProgressCallback, ProgressOption, progress_callback
from intraslice.core.registry import ESTIMATORS
from intraslice.loading import LoadedModel
from intraslice.modeling.hidden_states import Windows
from intraslice.modeling.offload import is_offloaded
from intraslice.planning.baseline_plans import bisect_count
from intraslice.planning.profile import Profile
from intraslice.planning.ratios import ModuleId, Ratios, importances_along, make_plan
from intraslice.samples import TEMPERATURE, kept_samples
from intraslice.search import evolution
from intraslice.search.evolution import SETS, Allocation, Levels, Measures, Problem, SearchConfig, State
from intraslice.search.measure import KEPT_LEVELS, Candidates

JUDGED = 4  # windows that no generation reads, for the divergence before and after
FORMAT = "5"
MAX_SCALE = 8.0  # maximum multiple of the ratios between two plans of the estimator
DEPTH_FORMAT = "depth 2"


@dataclass(frozen=True)
class SearchResult:
    """Ratios of every module, and the KL divergence before and after, in nats per token, on text the search never read.

    `passes` counts dense passes over the calibration tokens; `changes` has the relative change of KL in each
    generation, 0 where no child was better.
    """

    sparsity: float
    ratios: Ratios
    before: float
    after: float
    passes: float
    changes: tuple[float, ...]

    @property
    def accepted(self) -> int:
        """Generations that found a better allocation."""
        return sum(change != 0 for change in self.changes)


@dataclass(frozen=True)
class SearchProgress:
    """The search after some generations, for a live display."""

    ratios: dict[ModuleId, float]
    start: dict[ModuleId, float]  # with which it began
    generation: int
    passes: float
    changes: tuple[float, ...]


def evolve(
    candidates: Candidates,
    start: Allocation,
    step: Callable[[State, Measures], State],
    sparsity: float,
    search: SearchConfig,
    key: Sequence[object],
    report: ProgressCallback,
) -> SearchResult:
    """Run generations of a search, each by `step`, from the allocation `start` on, within its budget of dense passes.

    Every generation is recorded in the cache, in a file for `key` and all settings but the budget, from which an
    interrupted search continues.
    """
    path, passes = cache_path("search", ".json", *key, asdict(replace(search, passes=0.0))), search.passes
    ratios, passes_per_window = candidates.levels.ratios, candidates.windows.shape[1] / candidates.stats.tokens
    journal: list[State] = []
    for recorded in read_record(path).get("states", []):  # those of a larger budget may follow
        if not journal or journal[-1].windows * passes_per_window < passes:
            journal.append(State.parse(recorded))
    state = journal[-1] if journal and passes > 0 else State(start)

    def live() -> SearchProgress:
        ran = state.windows * passes_per_window
        return SearchProgress(ratios(state.allocation), ratios(start), state.generation, ran, state.changes)

    def pause() -> None:
        done = min(passes, state.windows * passes_per_window)
        report(Progress("search", round(done), max(1, round(passes)), partial=live))

    measures = replace(candidates, pause=pause)
    pause()
    while state.windows * passes_per_window < passes:
        state = step(state, measures)
        journal.append(state)
        write_record(path, {"states": [asdict(one) for one in journal]}, "the generations of a search")
        pause()
    judged = range(len(candidates.windows) - JUDGED, len(candidates.windows))
    before, after = (fmean(measures.divergence(one, judged)) for one in (start, state.allocation))
    ran = state.windows * passes_per_window
    return SearchResult(sparsity, ratios(state.allocation), before, after, ran, state.changes)


def search_ratios(
    loaded: LoadedModel,
    stats: CalibrationStats,
    windows: Windows,
    config: SliceConfig,
    others: Sequence[SearchResult] = (),
    search: SearchConfig | None = None,
    *,
    progress: ProgressOption = True,
) -> SearchResult:
    """Search for ratios at `config.sparsity`, starting from the estimator's plan; `progress` counts dense passes.

    Every generation is recorded in the cache, so that an interrupted search continues where it stopped, one with more
    passes continues a shorter one, and one with fewer has the result that it would have alone.

    `windows` are text that decides, such as calibration text that follows the calibration tokens; the last four only
    measure the result. The ratios stay above those of `others` at smaller sparsities and below those at larger ones, so
    that one file of importances reproduces all of them. Raises UserError for too few windows, or settings that
    `require_searchable` refuses.
    """
    report, search = progress_callback(progress), search or SearchConfig()
    require_searchable(config, len(windows), search)
    groups = groups_of(len(windows), search)
    require_in_memory(loaded)
    problem, start = problem_of(stats.profile_for(config), config, others)
    candidates = Candidates(loaded.model, stats, problem.levels, windows)
    calibrated = stats.tokens, stats.targets, stats.layers[-1].attention_sum
    key = FORMAT, loaded.fingerprint, loaded.model.dtype, *calibrated, windows, config, start, problem.bounds
    step = partial(evolution.next_state, problem, config=search, groups=groups)
    return evolve(candidates, start, step, config.sparsity, search, key, report)


def search_bytes(model: PreTrainedModel) -> int:
    """Memory of the slices and rankings of neurons that a search keeps, at most; without the dense distributions."""
    slices = KEPT_LEVELS * sum(parameter.nbytes for parameter in model.model.layers.parameters())
    return slices + sum(4 * layer.mlp.neurons**2 for layer in model.model.layers)


def search_windows(
    loaded: LoadedModel, text: Windows, count: int, seed: int = 0, skip: int = 0, *, progress: ProgressOption = True
) -> Int[Tensor, "count window"]:
    """`count` windows to search on: alternately of the text and of what the dense model writes, as far as both go.

    Ratios that are found on the model's own samples generalise better to other texts than those of one text. The
    samples are kept in the cache; the first `skip` of them, which a calibration has read, are left out.
    """
    size = skip + count - len(text), text.shape[1]
    report = progress_callback(progress)
    samples = kept_samples(loaded.model, size, TEMPERATURE, seed, report)[skip:].to(text)
    both = min(len(text), len(samples))
    alternating = torch.stack([text[:both], samples[:both]], dim=1).flatten(0, 1)
    return torch.cat([alternating, text[both:], samples[both:]])


def require_in_memory(loaded: LoadedModel) -> None:
    """Raise UserError if layers of the model are offloaded: a search slices them again and again."""
    if is_offloaded(loaded.model):
        raise UserError("the search requires a model that fits into memory, got an offloaded one; leave out device_map")


def searched_importances(
    profile: Profile, results: Sequence[SearchResult], estimator: str
) -> list[dict[ModuleKind, list[float]]]:
    """Importances of every layer whose plans have the ratios that were found at each sparsity."""
    path = sorted((result.sparsity, result.ratios) for result in results)
    return importances_along(profile, path, estimator)


def groups_of(windows: int, search: SearchConfig, sets: int = SETS) -> int:
    """How many groups of `sets` sets of windows there are. Raises UserError if there is none."""
    least = sets * search.windows + JUDGED
    if windows < least:
        raise UserError(
            f"the search requires {least} or more windows, got {windows}; there are two for each calibration sequence, "
            f"so calibrate on {-(-least // 2)} or more (--sequences)"
        )
    return (windows - JUDGED) // (sets * search.windows)


def require_unlocked(config: SliceConfig) -> None:
    """Raise UserError if a ratio is locked."""
    if config.locked:
        raise UserError(f"the search requires that no ratio is locked, got {len(config.locked)} locked; unlock them")


def require_searchable(config: SliceConfig, windows: int, search: SearchConfig) -> None:
    """Raise UserError unless a search with these settings can run on so many windows."""
    groups_of(windows, search)
    require_unlocked(config)
    if config.shapes != FREE:
        raise UserError(f"the search requires shapes {FREE!r}, got {config.shapes!r}; choose shapes afterwards")
    if config.bias is not None:
        raise UserError(f"the search requires that the importances decide the bias, got {config.bias:g}; leave it out")
    if ESTIMATORS[config.estimator].importance is None:
        raise UserError(
            f"the search requires an estimator with importances, such as pca or fisher, got {config.estimator}"
        )
    if config.head_fraction is not None or config.gradient_group != GRADIENT_GROUP:
        raise UserError(
            "the search requires the default head_fraction and gradient_group, got head_fraction "
            f"{config.head_fraction}, gradient_group {config.gradient_group}; leave them out"
        )


def problem_of(
    profile: Profile, config: SliceConfig, others: Sequence[SearchResult] = ()
) -> tuple[Problem, Allocation]:
    """Levels, bounds and size of one search, and the allocation it starts from. Pure."""
    levels = evolution.levels_of(profile, config.cap)
    smaller = max((r for r in others if r.sparsity < config.sparsity), key=lambda r: r.sparsity, default=None)
    larger = min((r for r in others if r.sparsity > config.sparsity), key=lambda r: r.sparsity, default=None)
    lowest = levels.at_ratios(smaller.ratios) if smaller else (0,) * len(levels.modules)
    last = tuple(len(sizes) - 1 for sizes in levels.levels)
    highest = levels.at_ratios(larger.ratios) if larger else last
    plan = make_plan(profile, config)
    dense = levels.parameters((0,) * len(levels.modules))
    target = plan.parameters.sliced_decoder - (profile.dense_decoder - dense)
    problem = Problem(levels, tuple(zip(lowest, highest, strict=True)), target, dense)
    ratios = planned_ratios(profile, config)
    if other := smaller or larger:
        before = planned_ratios(profile, replace(config, sparsity=other.sparsity))
        ratios = _moved(levels, other.ratios, {place: ratios[place] - before[place] for place in ratios}, problem)
    return problem, evolution.start_near(problem, levels.at_ratios(ratios))


def _moved(levels: Levels, ratios: Ratios, added: Mapping[ModuleId, float], problem: Problem) -> dict[ModuleId, float]:
    """The ratios plus a multiple of `added`, such that the size is that of the problem."""

    def moved(scale: float) -> dict[ModuleId, float]:
        return {place: min(1.0, max(0.0, ratio + scale * added[place])) for place, ratio in ratios.items()}

    def parameters(scale: float) -> int:
        return levels.parameters(levels.at_ratios(moved(scale)))

    if parameters(0.0) >= problem.parameters:
        return moved(bisect_count(parameters, problem.parameters, MAX_SCALE))
    return moved(MAX_SCALE - bisect_count(lambda less: parameters(MAX_SCALE - less), problem.parameters, MAX_SCALE))


def planned_ratios(profile: Profile, config: SliceConfig) -> dict[ModuleId, float]:
    """The ratios of all modules in the estimator's plan."""
    layers = enumerate(make_plan(profile, config).layers)
    return {(index, module): getattr(layer, f"{module}_ratio") for index, layer in layers for module in MODULE_KINDS}


def search_depth(
    loaded: LoadedModel,
    stats: CalibrationStats,
    windows: Windows,
    sparsity: float,
    search: SearchConfig | None = None,
    *,
    progress: ProgressOption = True,
) -> SearchResult:
    """Search for the modules to remove, at a fraction `sparsity` of the decoder layers' parameters.

    Ratios of the result are 1 for removed modules and 0 for others. One attention module and one MLP, of the same layer
    if any layer keeps both, are to be narrowed by what whole modules leave of `sparsity`; the divergences, in nats per
    token, are those without this narrowing. Recorded as in `search_ratios`; `progress` counts dense passes.

    `windows` are as in `search_ratios`. Raises UserError for too few of them, a sparsity that `whole_layers` refuses,
    or an offloaded model.
    """
    report, search = progress_callback(progress), search or SearchConfig()
    groups = groups_of(len(windows), search, evolution.COMPARED)
    require_in_memory(loaded)
    # The layers, those first that change their input least.
    order = sorted(range(len(stats.layers)), key=lambda layer: stats.layers[layer].influence.item())
    count, rest = evolution.whole_layers(stats.sizes, sparsity)
    candidates = Candidates(loaded.model, stats, evolution.whole_or_removed(stats.sizes), windows)
    removed = order[:count]
    start = tuple(evolution.REMOVED if layer in removed else evolution.KEPT for layer, _ in candidates.levels.modules)
    # Output biases include the means of what is removed.
    calibrated = stats.tokens, stats.layers[-1].attention_sum
    key = DEPTH_FORMAT, loaded.fingerprint, loaded.model.dtype, *calibrated, windows, start
    step = partial(evolution.next_depth, config=search, groups=groups)
    result = evolve(candidates, start, step, sparsity, search, key, report)
    return replace(result, ratios={**result.ratios, **dict.fromkeys(evolution.narrowed(result.ratios, order), rest)})
