"""Depth pruning by search: which modules to remove as a whole (after EvoPress, arXiv 2410.14649).

As many MLPs as attention modules are removed; of each only its output bias is left, if it has one. A child removes up
to three modules that its parent keeps, and keeps as many of the same kind instead. The search starts without the layers
that change their input least, as ShortGPT.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import asdict, replace

from jaxtyping import Int
from torch import Tensor

from intraslice.calibration.stats import CalibrationStats
from intraslice.core.cache import cache_path
from intraslice.core.config import MODULE_KINDS
from intraslice.core.errors import UserError
from intraslice.core.progress import ProgressCallback, progress_callback
from intraslice.loading import LoadedModel
from intraslice.planning.ratios import ModuleId, Ratios
from intraslice.planning.sizes import LayerSizes
from intraslice.search.evolution import (
    Allocation,
    Level,
    Levels,
    Measures,
    SearchConfig,
    State,
    distinct,
    selected,
    sets_of,
)
from intraslice.search.measure import Candidates
from intraslice.search.ratio_search import SearchResult, evolve, groups_of, require_in_memory

FORMAT = "depth 2"
COMPARED = 2  # sets of windows in each generation, on which children are compared
SWAPPED = 3  # modules that a child exchanges at most
KEPT, REMOVED = 0, 1  # the levels of each module


def search_depth(
    loaded: LoadedModel,
    stats: CalibrationStats,
    windows: Int[Tensor, "windows window"],
    sparsity: float,
    search: SearchConfig | None = None,
    *,
    progress: ProgressCallback | bool = True,
) -> SearchResult:
    """Search for the modules to remove, at a fraction `sparsity` of the decoder layers' parameters.

    Ratios of the result are 1 for removed modules and 0 for others. One attention module and one MLP, of the same layer
    if any layer keeps both, are to be narrowed by what whole modules leave of `sparsity`; the divergences, in nats per
    token, are those without this narrowing. Recorded as in `search_ratios`; `progress` counts dense passes.

    `windows` are text that decides, such as calibration text that follows the calibration tokens; the last four only
    measure the result. Raises UserError for too few windows, a sparsity that `whole_layers` refuses, or an offloaded
    model.
    """
    report, search = progress_callback(progress), search or SearchConfig()
    groups = groups_of(len(windows), search, COMPARED)
    require_in_memory(loaded)
    # The layers, those first that change their input least.
    order = sorted(range(len(stats.layers)), key=lambda layer: stats.layers[layer].influence.item())
    count, rest = whole_layers(stats.sizes, sparsity)
    candidates = Candidates(loaded.model, stats, whole_or_removed(stats.sizes), windows)
    start = tuple(REMOVED if layer in order[:count] else KEPT for layer, _ in candidates.levels.modules)
    # Output biases include the means of what is removed.
    calibrated = stats.tokens, stats.layers[-1].attention_sum
    settings = asdict(replace(search, passes=0.0))
    path = cache_path(
        "search", ".json", FORMAT, loaded.fingerprint, loaded.model.dtype, *calibrated, windows, start, settings
    )

    def step(state: State, measures: Measures) -> State:
        return next_depth(state, measures, search, groups)

    result = evolve(candidates, start, step, sparsity, search.passes, path, report)
    return replace(result, ratios={**result.ratios, **dict.fromkeys(narrowed(result.ratios, order), rest)})


def whole_layers(sizes: Sequence[LayerSizes], sparsity: float) -> tuple[int, float]:
    """How many layers a sparsity removes as a whole, and the ratio by which it narrows another one.

    Raises UserError if it removes no layer, or all of them, or if the layers have different sizes.
    """
    modules = {layer.dense_parameters - layer.fixed for layer in sizes}
    if len(modules) > 1:
        raise UserError(f"depth pruning requires layers of equal size, got {len(modules)} different sizes")
    count, rest = divmod(sparsity * sum(layer.dense_parameters for layer in sizes) / modules.pop(), 1)
    if not 1 <= count < len(sizes):
        raise UserError(
            f"depth pruning requires a sparsity that removes a layer or more and keeps one, got {sparsity:g} of "
            f"{len(sizes)} layers"
        )
    return int(count), rest


def narrowed(ratios: Ratios, order: Sequence[int]) -> list[ModuleId]:
    """An attention module and an MLP that are kept, of the first layer in `order` that keeps both, if there is one."""
    both = [layer for layer in order if not any(ratios[layer, kind] for kind in MODULE_KINDS)]
    return [next((layer, kind) for layer in [*both, *order] if ratios[layer, kind] == 0) for kind in MODULE_KINDS]


def whole_or_removed(sizes: Sequence[LayerSizes]) -> Levels:
    """Two levels of every module."""
    modules = tuple((layer, kind) for layer in range(len(sizes)) for kind in MODULE_KINDS)
    levels = []
    for layer in sizes:
        attention = layer.parameters(layer.heads, layer.kv_heads, layer.dim, 0) - layer.fixed
        heads = tuple(range(layer.heads))
        levels.append((Level(0.0, attention, heads, layer.kv_heads, layer.dim), Level(1.0, 0, width=layer.dim)))
        levels.append((Level(0.0, layer.neurons * layer.neuron_cost, width=layer.neurons), Level(1.0, 0)))
    return Levels(modules, tuple(levels))


def next_depth(state: State, measures: Measures, config: SearchConfig, groups: int) -> State:
    """One generation. `groups` is the number of groups of `COMPARED` sets of windows, which are used in turns."""
    rng = random.Random(f"{config.seed} {state.generation}")
    children = distinct(lambda: _exchanged(state.allocation, rng), config.children)
    sets = sets_of(state, config, groups, COMPARED)
    best, change, compared = selected(state.allocation, children, sets, measures, config)
    changes = (*state.changes, change)
    return replace(
        state, allocation=best, generation=state.generation + 1, windows=state.windows + compared, changes=changes
    )


def _exchanged(parent: Allocation, rng: random.Random) -> Allocation:
    """The parent with one to three modules removed, and as many of the same kind kept instead. Few are most likely."""
    child = list(parent)
    for _ in range(min(rng.randint(1, SWAPPED), rng.randint(1, SWAPPED))):
        modules = [module for module in range(rng.randrange(2), len(child), 2) if child[module] == parent[module]]
        kept, removed = ([module for module in modules if child[module] == level] for level in (KEPT, REMOVED))
        if kept and removed:
            child[rng.choice(kept)], child[rng.choice(removed)] = REMOVED, KEPT
    return tuple(child)
