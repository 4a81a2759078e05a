"""The sizes that the search may give to each module, and allocations of parameters to all modules. Pure."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from itertools import chain, pairwise

from intraslice.core.config import MODULE_KINDS, ModuleKind
from intraslice.planning.profile import LayerProfile, Profile
from intraslice.planning.ratios import ModuleId, Ratios
from intraslice.planning.sizes import MULTIPLE, neurons_kept

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
        return {module_id: self[number, level].ratio for number, (module_id, level) in self._pairs(allocation)}

    def _pairs(self, allocation: Allocation) -> Iterator[tuple[int, tuple[ModuleId, int]]]:
        return enumerate(zip(self.modules, allocation, strict=True))

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
    return Levels(modules, tuple(_decreasing(_sizes(profile.layers[index], kind, cap)) for index, kind in modules))


def _decreasing(levels: Iterator[Level]) -> tuple[Level, ...]:
    kept = [next(levels)]
    for level in levels:
        if level.parameters < kept[-1].parameters:
            kept.append(level)
    return tuple(kept)


def _sizes(layer: LayerProfile, module: ModuleKind, cap: float) -> Iterator[Level]:
    """All sizes of one module, the largest first. Each has the ratio in the middle of those that round to it."""
    sizes = layer.sizes
    if module == "mlp":
        yield Level(0.0, sizes.neurons * sizes.neuron_cost, width=sizes.neurons)
        for removed in range(MULTIPLE, sizes.neurons, MULTIPLE):
            ratio = (removed + MULTIPLE / 2) / sizes.neurons
            if ratio <= cap:
                kept = neurons_kept(sizes.neurons, ratio)
                yield Level(ratio, kept * sizes.neuron_cost, width=kept)
        return
    alive, channels = layer.table.alive.cpu(), sizes.channels
    keep = channels
    while keep and 1 - keep / channels <= cap:
        shape, first = layer.shapes[keep], keep
        heads = tuple(alive[keep].nonzero().flatten().tolist())
        while keep > 1 and layer.shapes[keep - 1] == shape and alive[keep - 1].equal(alive[first]):
            keep -= 1
        ratio = 0.0 if first == channels else min(cap, 1 - (first + keep) // 2 / channels)
        count, kv_heads, dim = shape
        yield Level(ratio, sizes.parameters(count, kv_heads, dim, 0) - sizes.fixed, heads, kv_heads, dim)
        keep -= 1
