"""Planning of the other methods: entropic ratios per layer, ranks of low-rank maps, bisection to a budget. Pure."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch

from intraslice.core.errors import UserError
from intraslice.planning.ratios import SlicePlan
from intraslice.planning.sizes import LayerSizes

BISECTION_STEPS = 48
TOLERANCE = 0.01  # allowed deviation of a plan, relative to the target number of parameters


def bisect_count(count: Callable[[float], int], target: float, high: float) -> float:
    """The argument from 0 to `high` at which a decreasing parameter count is nearest to `target`, by bisection.

    Raises UserError where no count in this range is within one per cent of `target`.
    """
    low = 0.0
    if not count(high) - TOLERANCE * target <= target <= count(low) + TOLERANCE * target:
        raise UserError(
            f"the sparsity cannot be reached: the plan would have to keep {target:,.0f} parameters of the decoder "
            f"layers, but only {count(high):,} to {count(low):,} are possible; raise the cap, unlock modules, or "
            "change the sparsity"
        )
    for _ in range(BISECTION_STEPS):
        middle = (low + high) / 2
        low, high = (middle, high) if count(middle) > target else (low, middle)
    return min((low, high), key=lambda argument: abs(count(argument) - target))


def entropic_ratios(importance: Sequence[float], mean: float, temperature: float) -> list[float]:
    """The ratios with this mean that maximise `sum s_i (1 - r_i) + temperature * entropy(r)`, uncapped.

    `r = L * mean * softmax(-s / temperature)` (MoDeGPT, arXiv 2408.09632, global sparsity allocation).
    """
    weights = (-torch.tensor(importance, dtype=torch.float64) / temperature).softmax(0)
    return (len(importance) * mean * weights).tolist()


def proportional_fractions(weights: Sequence[float], mean: float) -> list[float]:
    """Fractions with this mean, proportional to positive weights where that gives less than 1, and 1 elsewhere."""
    fractions = torch.ones(len(weights), dtype=torch.float64)
    share = torch.tensor(weights, dtype=torch.float64).clamp_min(1e-12)
    free = torch.ones(len(weights), dtype=torch.bool)
    while free.any():
        whole = len(weights) - int(free.sum())
        fractions[free] = share[free] / share[free].sum() * (len(weights) * mean - whole)
        if not (fractions > 1).any():
            break
        free &= fractions < 1
        fractions[~free] = 1.0
    return fractions.tolist()


@dataclass(frozen=True)
class LowRankPlan(SlicePlan):
    """A plan that keeps all sizes of a layer and sets the ranks of its linear maps."""

    ranks: tuple[dict[str, int], ...] = ()  # of each layer, by the name of the map; empty where nothing is removed


def map_shapes(sizes: LayerSizes) -> dict[str, tuple[int, int]]:
    """Rows and columns of a dense layer's linear maps."""
    hidden, keys, neurons = sizes.hidden, sizes.kv_heads * sizes.dim, sizes.neurons
    attention = {"q": (sizes.channels, hidden), "k": (keys, hidden), "v": (keys, hidden), "o": (hidden, sizes.channels)}
    gate = {"gate": (neurons, hidden)} if sizes.gated else {}
    return attention | gate | {"up": (neurons, hidden), "down": (hidden, neurons)}


def rank_for(shape: tuple[int, int], kept_fraction: float) -> int:
    """The rank, at least 1, of two factors with about `kept_fraction` of a map's entries, and fewer than all."""
    rows, columns = shape
    exact = kept_fraction * rows * columns / (rows + columns)
    return max(1, min(round(exact), (rows * columns - 1) // (rows + columns)))


def saved_parameters(shape: tuple[int, int], rank: int) -> int:
    """Entries of the map less those of the two factors; biases do not change."""
    rows, columns = shape
    return rows * columns - rank * (rows + columns)
