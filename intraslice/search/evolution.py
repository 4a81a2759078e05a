"""Evolutionary search over allocations of parameters to modules (after EvoPress, arXiv 2410.14649). Pure.

The levels of a module are the sizes that it can take; an allocation has one for each module. Each generation moves
parameters between modules at equal size. Its children are drawn around predicted costs, since most random swaps are
worse: remove where a parameter costs least, add where it gains most. Children are compared on the same few windows
first, the best of them on further windows, and the winner replaces its parent if KL falls on both sets. KL counts
relative to the parent's in each window: texts on which it is large weigh no more than others. Successive generations
read different windows, so that the search does not fit a few of them.
"""

import math
import random
import statistics
from bisect import bisect_left
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate, chain, groupby, pairwise
from typing import Any, Protocol, Self, runtime_checkable

from intraslice.core.checks import check_fields, integer, number
from intraslice.core.config import MODULE_KINDS, ModuleKind
from intraslice.core.errors import UserError
from intraslice.planning.profile import LayerProfile, Profile
from intraslice.planning.ratios import ModuleId, Ratios
from intraslice.planning.sizes import MULTIPLE, LayerSizes, neurons_kept

STEP = 0.002  # of all parameters: what one module gains or loses in one generation, or its smallest step
FACTORS = (1, 2)  # steps of each module that a child may take at once
MAX_MOVED = 0.08  # of all parameters, by one child
MIN_MOVED = 0.002
DECAY = 0.5  # of earlier predicted costs of an unchanged module, in their average over generations
NOISE = 0.5  # of predicted costs, relative to their median size
INCLUDED = 0.7  # probability that a child may change a module
SETS = 3  # of windows in each generation: predictions, and two on which children are compared
COST_TOKENS = 5  # a prediction of costs runs a token about as often as five dense passes: both ways, and alternatives
MAX_PASSES = 10**6
MAX_COUNT = 1000  # children, survivors or windows
Allocation = tuple[int, ...]  # the number of the level of each module


@dataclass(frozen=True)
class Level:
    """One size of a module: its ratio, its parameters, and what is kept (heads and their width, or neurons)."""

    ratio: float
    parameters: int
    heads: tuple[int, ...] = ()
    kv_heads: int = 0
    width: int = 0  # channels of a head, or neurons


@dataclass(frozen=True)
class Levels:
    """The levels of every module, the largest first; their parameters strictly decrease."""

    modules: tuple[ModuleId, ...]  # layer by layer, attention first
    levels: tuple[tuple[Level, ...], ...]

    def __getitem__(self, place: tuple[int, int]) -> Level:
        module, level = place
        return self.levels[module][level]

    def parameters(self, allocation: Allocation) -> int:
        """Parameters of all modules."""
        return sum(self[place].parameters for place in enumerate(allocation))

    @cached_property
    def finest(self) -> int:
        """Parameters of the smallest step between two levels of a module."""
        pairs = chain.from_iterable(pairwise(levels) for levels in self.levels)
        return min((larger.parameters - smaller.parameters for larger, smaller in pairs), default=0)

    def ratios(self, allocation: Allocation) -> dict[ModuleId, float]:
        """The ratio of every module."""
        return dict(zip(self.modules, (self[place].ratio for place in enumerate(allocation)), strict=True))

    def nearest(self, module: int, parameters: float) -> int:
        """The level of a module whose parameters are nearest to a number."""
        levels = self.levels[module]
        after = bisect_left(levels, -parameters, key=lambda level: -level.parameters)
        candidates = range(max(0, after - 1), min(after + 1, len(levels)))
        return min(candidates, key=lambda level: abs(levels[level].parameters - parameters))

    def at_ratios(self, ratios: Ratios) -> Allocation:
        """The levels with the nearest ratios."""
        return tuple(
            min(range(len(levels)), key=lambda level: abs(levels[level].ratio - ratios[module_id]))
            for module_id, levels in zip(self.modules, self.levels, strict=True)
        )


def levels_of(profile: Profile, cap: float) -> Levels:
    """All sizes of all modules with ratios up to `cap` that a plan can have, whole heads included.

    Sizes that remove channels but no parameters (fewer but wider heads) are left out.
    """
    modules = tuple((index, module) for index in range(len(profile.layers)) for module in MODULE_KINDS)
    return Levels(modules, tuple(_sizes(profile.layers[index], kind, cap) for index, kind in modules))


def _sizes(layer: LayerProfile, module: ModuleKind, cap: float) -> tuple[Level, ...]:
    """All sizes of one module, the largest first. Each has the ratio in the middle of those that round to it."""
    sizes = layer.sizes
    if module == "mlp":
        middles = [(removed + MULTIPLE / 2) / sizes.neurons for removed in range(MULTIPLE, sizes.neurons, MULTIPLE)]
        ratios = [0.0, *(ratio for ratio in middles if ratio <= cap)]
        widths = [neurons_kept(sizes.neurons, ratio) for ratio in ratios]
        pairs = zip(ratios, widths, strict=True)
        return _decreasing([Level(ratio, width * sizes.neuron_cost, width=width) for ratio, width in pairs])
    levels, channels = [], sizes.channels
    for (heads, (count, kv_heads, dim)), group in groupby(
        range(channels, 0, -1), lambda keep: (layer.heads(keep), layer.shapes[keep])
    ):
        budgets = list(group)
        if 1 - budgets[0] / channels > cap:
            break
        ratio = 0.0 if budgets[0] == channels else min(cap, 1 - (budgets[0] + budgets[-1]) // 2 / channels)
        levels.append(Level(ratio, sizes.parameters(count, kv_heads, dim, 0) - sizes.fixed, heads, kv_heads, dim))
    return _decreasing(levels)


def _decreasing(levels: Sequence[Level]) -> tuple[Level, ...]:
    least = accumulate((level.parameters for level in levels), min, initial=math.inf)
    return tuple(level for level, before in zip(levels, least, strict=False) if level.parameters < before)


Bounds = tuple[tuple[int, int], ...]  # the smallest and the largest level of each module
# Predicted relative change of KL per parameter lost or gained; empty for a module that has just changed.
Rates = tuple[tuple[float, ...], ...]


@runtime_checkable
class Measures(Protocol):
    """What a search asks for, on some windows of a text."""

    def divergence(self, allocation: Allocation, windows: range) -> list[float]:
        """KL divergence of an allocation from the dense model in each window, in nats per token."""

    def costs(
        self, allocation: Allocation, alternatives: Mapping[int, Sequence[int]], windows: range
    ) -> dict[tuple[int, int], float]:
        """Predicted relative change of KL, mean of the windows, with one module at another level, by both."""


@dataclass(frozen=True)
class SearchConfig:
    """`passes` is the budget, in dense passes over the calibration tokens; `windows` are those of one set."""

    passes: float = 100.0
    children: int = 6
    survivors: int = 2
    windows: int = 2
    seed: int = 0

    def __post_init__(self) -> None:
        check_fields(self, number, passes=(0, MAX_PASSES))
        check_fields(self, integer, children=(1, MAX_COUNT), survivors=(1, MAX_COUNT), windows=(1, MAX_COUNT))


@dataclass(frozen=True)
class State:
    """The best allocation so far, and everything else that the next generation depends on."""

    allocation: Allocation
    generation: int = 0
    windows: int = 0  # that ran, in units of a dense forward
    moved: float = 0.02  # fraction of all parameters that a child moves
    rates: Rates = ()
    changes: tuple[float, ...] = ()  # relative change of KL in each generation, 0 where the parent stayed

    @classmethod
    def parse(cls, record: Mapping[str, Any]) -> Self:
        """The state whose `asdict` was stored as JSON."""
        values = {name: tuple(value) if isinstance(value, list) else value for name, value in record.items()}
        return cls(**values | {"rates": tuple(map(tuple, record["rates"]))})


@dataclass(frozen=True)
class Problem:
    """All levels, their bounds in this search, and the parameters that all modules together should have."""

    levels: Levels
    bounds: Bounds
    parameters: int
    total: int  # parameters of the dense modules

    def moved(self, module: int, level: int, parameters: float) -> int:
        """The level after a change of about so many parameters, at least one level away where the bounds allow it."""
        low, high = self.bounds[module]
        size = self.levels[module, level].parameters
        nearest = self.levels.nearest(module, size + parameters)
        if nearest == level:
            nearest += -1 if parameters > 0 else 1
        return min(max(nearest, low), high)

    def steps(self, allocation: Allocation, count: int = 1) -> dict[int, tuple[int, int]]:
        """For every module the levels with `count` steps fewer and more parameters."""
        step = count * STEP * self.total
        return {
            module: (self.moved(module, level, -step), self.moved(module, level, step))
            for module, level in enumerate(allocation)
        }

    def is_equal(self, allocation: Allocation, parent: Allocation) -> bool:
        """Whether the number of parameters is the required one, within the finest step, or as near as the parent's."""
        excess, other = (abs(self.levels.parameters(one) - self.parameters) for one in (allocation, parent))
        return excess <= max(other, self.levels.finest)

    def balanced(self, allocation: Allocation, order: Sequence[int]) -> Allocation:
        """The allocation with the required number of parameters, as nearly as changes of one module allow.

        Each module in turn takes over the excess, by at most one step.
        """
        result, step = list(allocation), STEP * self.total
        for module in order:
            excess = self.levels.parameters(tuple(result)) - self.parameters
            size = self.levels[module, result[module]].parameters - max(-step, min(step, excess))
            low, high = self.bounds[module]
            level = min(max(self.levels.nearest(module, size), low), high)
            change = self.levels[module, level].parameters - self.levels[module, result[module]].parameters
            if abs(excess + change) < abs(excess):
                result[module] = level
        return tuple(result)


def next_state(problem: Problem, state: State, measures: Measures, config: SearchConfig, groups: int) -> State:
    """One generation. `groups` is the number of groups of `SETS` sets of windows, which are used in turns."""
    sets = sets_of(state, config, groups)
    rng = random.Random(f"{config.seed} {state.generation}")
    parent, steps = state.allocation, problem.steps(state.allocation)
    alternatives = {module: sorted({*pair} - {parent[module]}) for module, pair in steps.items()}
    costs = measures.costs(parent, alternatives, sets[0])
    rates = _averaged(state.rates, _rates(problem, parent, steps, costs))
    children = distinct(
        lambda: _child(problem, state, rates, rng),
        config.children,
        lambda child: child != parent and problem.is_equal(child, parent),
    )
    best, change, compared = selected(parent, children, sets[1:], measures, config)
    rates = tuple(() if old != new else rate for old, new, rate in zip(parent, best, rates, strict=True))
    moved = min(MAX_MOVED, 1.4 * state.moved) if change else max(MIN_MOVED, 0.7 * state.moved)
    cost = (COST_TOKENS + 1) * config.windows + compared
    return State(best, state.generation + 1, state.windows + cost, moved, rates, (*state.changes, change))


def sets_of(state: State, config: SearchConfig, groups: int, sets: int = SETS) -> list[range]:
    """The sets of windows of a generation. There are `groups` of them, which are used in turns."""
    size, first = config.windows, state.generation % groups * sets * config.windows
    return [range(start, start + size) for start in range(first, first + sets * size, size)]


def selected(
    parent: Allocation, children: Sequence[Allocation], sets: Sequence[range], measures: Measures, config: SearchConfig
) -> tuple[Allocation, float, int]:
    """The best child, and its relative change of KL; the parent and 0 if none is better on both sets of windows.

    Also the number of windows that ran, in units of a dense forward.
    """
    first_set = _relative_changes(parent, children, sets[0], measures)
    ranked = sorted(range(len(children)), key=first_set.__getitem__)[: config.survivors]
    second_set = _relative_changes(parent, [children[child] for child in ranked], sets[1], measures)
    windows = (len(first_set) + 2 + len(second_set) + 2) * config.windows
    pairs = [(first_set[child], second, child) for child, second in zip(ranked, second_set, strict=True)]
    if pairs:
        first_change, second_change, winner = min(pairs, key=lambda pair: pair[0] + pair[1])
        if first_change < 0 and second_change < 0:
            return children[winner], (first_change + second_change) / 2, windows
    return parent, 0.0, windows


def _relative_changes(
    parent: Allocation, children: Sequence[Allocation], windows: range, measures: Measures
) -> list[float]:
    """Relative change of KL from the parent's to each child's, mean of the windows."""
    before, *after = (measures.divergence(one, windows) for one in (parent, *children))
    return [statistics.fmean(one / old for one, old in zip(child, before, strict=True)) - 1 for child in after]


def _rates(
    problem: Problem, parent: Allocation, steps: Mapping[int, tuple[int, int]], costs: Mapping[tuple[int, int], float]
) -> Rates:
    """Predicted relative change of KL per parameter removed and added; 0 for a module at a bound."""

    def rate(module: int, level: int) -> float:
        change = abs(problem.levels[module, level].parameters - problem.levels[module, parent[module]].parameters)
        return costs[module, level] / change if change else 0.0

    return tuple((rate(module, fewer), rate(module, more)) for module, (fewer, more) in steps.items())


def _averaged(earlier: Rates, rates: Rates) -> Rates:
    return tuple(
        tuple(DECAY * before + (1 - DECAY) * after for before, after in zip(old, new, strict=True)) if old else new
        for old, new in zip(earlier or [()] * len(rates), rates, strict=True)
    )


def distinct(
    draw: Callable[[], Allocation], count: int, is_allowed: Callable[[Allocation], bool] = lambda child: True
) -> list[Allocation]:
    """Up to `count` different allowed children, from at most eight draws for each."""
    found: list[Allocation] = []
    for _ in range(8 * count):
        child = draw()
        if child not in found and is_allowed(child):
            found.append(child)
        if len(found) == count:
            break
    return found


def _child(problem: Problem, state: State, rates: Rates, rng: random.Random) -> Allocation:
    """Remove parameters where they cost least and add them where they gain most, by rates with noise."""
    noise = NOISE * statistics.median(abs(rate) for pair in rates for rate in pair) or 1.0
    steps = problem.steps(state.allocation, rng.choice(FACTORS))
    amount = state.moved * 2 ** rng.uniform(-1, 1) * problem.total
    included = [module for module in steps if rng.random() < INCLUDED]
    lost, gained = ({module: rates[module][kind] + noise * rng.gauss(0, 1) for module in included} for kind in range(2))
    result, balance, removed, changed = list(state.allocation), 0, 0, set()
    sources, targets = sorted(lost, key=lost.__getitem__), sorted(gained, key=gained.__getitem__)

    def change(module: int, level: int) -> int:
        difference = problem.levels[module, level].parameters - problem.levels[module, result[module]].parameters
        result[module] = level
        changed.add(module)
        return difference

    while sources and targets and (removed < amount or not changed):
        source = sources.pop(0)
        if source in changed or steps[source][0] == state.allocation[source]:
            continue
        if changed and targets and lost[source] + gained[targets[0]] >= 0:
            break
        taken = change(source, steps[source][0])
        removed, balance = removed - taken, balance + taken
        while targets and balance < 0:
            target = targets.pop(0)
            if target not in changed and steps[target][1] != state.allocation[target]:
                balance += change(target, steps[target][1])
    order = [*sources, *targets, *included] if balance > 0 else [*targets, *sources, *included]
    return problem.balanced(tuple(result), [*order, *steps])


def start_near(problem: Problem, allocation: Allocation) -> Allocation:
    """The allocation within the bounds that has the required number of parameters."""
    within = tuple(min(max(level, low), high) for level, (low, high) in zip(allocation, problem.bounds, strict=True))
    for _ in range(1 + round(1 / STEP)):
        before, within = within, problem.balanced(within, range(len(within)))
        if within == before:
            break
    return within


# Depth pruning: which modules to remove as a whole. As many MLPs as attention modules are removed; of each only its
# output bias is left, if it has one.

COMPARED = 2  # sets of windows in each generation, on which children are compared
SWAPPED = 3  # modules that a child exchanges at most
KEPT, REMOVED = 0, 1  # the levels of each module


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
    return State(best, state.generation + 1, state.windows + compared, changes=(*state.changes, change))


def _exchanged(parent: Allocation, rng: random.Random) -> Allocation:
    """The parent with one to three modules removed, and as many of the same kind kept instead. Few are most likely."""
    child = list(parent)
    for _ in range(min(rng.randint(1, SWAPPED), rng.randint(1, SWAPPED))):
        modules = [module for module in range(rng.randrange(2), len(child), 2) if child[module] == parent[module]]
        kept, removed = ([module for module in modules if child[module] == level] for level in (KEPT, REMOVED))
        if kept and removed:
            child[rng.choice(kept)], child[rng.choice(removed)] = REMOVED, KEPT
    return tuple(child)
