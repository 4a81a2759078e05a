"""The global ranking of all units of one kind, and the threshold for a budget. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor


@dataclass(frozen=True)
class Ranking:
    """All units of one kind over all layers with their layers, the least important first.

    In NumPy: every operation of torch gives up the interpreter lock, for which a slider's answer would then wait.
    """

    importance: Float[np.ndarray, " units"]
    layer: Int[np.ndarray, " units"]
    counts: tuple[int, ...]  # units of each layer

    def ratios(self, fraction: float) -> tuple[list[float], float]:
        """Each layer's fraction of units among the `fraction` least important ones, and the importance threshold."""
        total = len(self.importance)
        cut = min(max(fraction, 0.0), 1.0) * total
        whole = int(cut)
        removed = np.bincount(self.layer[:whole], minlength=len(self.counts)).tolist()
        if whole < total:  # remove the next unit in part, so that ratios change smoothly with the budget
            removed[int(self.layer[whole])] += cut - whole
        threshold = float(self.importance[min(whole, total - 1)])
        return [count / units for count, units in zip(removed, self.counts, strict=True)], threshold


def rank(importances: Sequence[Tensor]) -> Ranking:
    """Rank all units, given the importances (units) of every layer; the number of units may differ."""
    counts = tuple(len(units) for units in importances)
    order = torch.cat(list(importances)).sort(stable=True)
    layer = torch.arange(len(counts)).repeat_interleave(torch.tensor(counts))[order.indices.cpu()]
    return Ranking(order.values.double().cpu().numpy(), layer.numpy(), counts)
