"""What rivals plan by: an entropic share for every layer, ranks of two-factor maps, the search for a budget. Pure."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch

from intraslice.core.errors import UserError
from intraslice.planning.ratios import SlicePlan
from intraslice.planning.sizes import LayerSizes

STEPS = 48  # halvings of a search
NEAR = 0.01  # of the parameters that are to stay: what a plan may miss


def nearest(count: Callable[[float], int], wanted: float, high: float) -> float:
    """Where from 0 to `high` a count of parameters that only falls is nearest to `wanted`, by halving.

    Raises UserError where it stays above `wanted`, or below, by more than one per cent of it.
    """
    low = 0.0
    if not count(high) - NEAR * wanted <= wanted <= count(low) + NEAR * wanted:
        raise UserError(
            f"from {count(high):,} to {count(low):,} of the decoder layers' parameters can stay, and {wanted:,.0f} are "
            "asked for; raise the cap, unlock what is locked, or ask for another sparsity"
        )
    for _ in range(STEPS):
        middle = (low + high) / 2
        low, high = (middle, high) if count(middle) > wanted else (low, middle)
    return min((low, high), key=lambda place: abs(count(place) - wanted))


def entropic_ratios(importance: Sequence[float], mean: float, temperature: float) -> list[float]:
    """Ratios of so high a mean that `sum s_i (1 - r_i) + temperature * entropy(r)` is the greatest.

    `r = L * mean * softmax(-s / temperature)` (MoDeGPT, arXiv 2408.09632, global sparsity allocation); none is capped.
    """
    shares = (-torch.tensor(importance, dtype=torch.float64) / temperature).softmax(0)
    return (len(importance) * mean * shares).tolist()


@dataclass(frozen=True)
class LowRankPlan(SlicePlan):
    """A plan that leaves every size of a layer alone, and gives its linear maps ranks, layer by layer."""

    ranks: tuple[dict[str, int], ...] = ()  # by the name of the map; none where nothing is removed


def map_shapes(sizes: LayerSizes) -> dict[str, tuple[int, int]]:
    """Rows and columns of a dense layer's linear maps."""
    hidden, keys, neurons = sizes.hidden, sizes.kv_heads * sizes.dim, sizes.neurons
    attention = {"q": (sizes.channels, hidden), "k": (keys, hidden), "v": (keys, hidden), "o": (hidden, sizes.channels)}
    gate = {"gate": (neurons, hidden)} if sizes.gated else {}
    return attention | gate | {"up": (neurons, hidden), "down": (hidden, neurons)}


def rank_for(shape: tuple[int, int], kept: float) -> int:
    """The rank at which two factors hold the share `kept` of a map's entries, nearly: 1 at least, and fewer than it."""
    rows, columns = shape
    exact = kept * rows * columns / (rows + columns)
    return max(1, min(round(exact), (rows * columns - 1) // (rows + columns)))


def saved(shape: tuple[int, int], rank: int) -> int:
    """How many entries fewer the two factors hold than the map; biases stay."""
    rows, columns = shape
    return rows * columns - rank * (rows + columns)
