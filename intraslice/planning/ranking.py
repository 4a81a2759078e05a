"""All units of one kind over all layers in one order, and the threshold that a budget cuts it at. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor


@dataclass(frozen=True)
class Ranking:
    """All units of one kind over all layers, the least important first, each with the layer it belongs to."""

    importance: Float[Tensor, " units"]
    layer: Int[Tensor, " units"]
    counts: tuple[int, ...]  # units of each layer

    def ratios(self, fraction: float) -> tuple[list[float], float]:
        """The share of each layer's units among the `fraction` least important, and the threshold that cuts them."""
        total = len(self.importance)
        cut = min(max(fraction, 0.0), 1.0) * total
        whole = int(cut)
        fallen = torch.bincount(self.layer[:whole], minlength=len(self.counts)).tolist()
        if whole < total:  # the unit that straddles the budget falls in part, so that ratios move smoothly
            fallen[int(self.layer[whole])] += cut - whole
        threshold = float(self.importance[min(whole, total - 1)])
        return [count / units for count, units in zip(fallen, self.counts, strict=True)], threshold


def rank(importances: Sequence[Tensor]) -> Ranking:
    """The ranking of all units, given the importances (units) of every layer, whose counts may differ."""
    counts = tuple(len(units) for units in importances)
    order = torch.cat(list(importances)).sort(stable=True)
    layer = torch.arange(len(counts)).repeat_interleave(torch.tensor(counts))[order.indices.cpu()]
    return Ranking(order.values.cpu(), layer, counts)
