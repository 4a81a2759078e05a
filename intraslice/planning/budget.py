"""Planning of the other methods: entropic ratios per layer, bisection to a budget. Pure."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch

from intraslice.core.errors import UserError

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
