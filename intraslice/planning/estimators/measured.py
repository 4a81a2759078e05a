"""Importances corrected by measurement: units keep their order, and cost what their layer was seen to cost. Pure."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional


def unit_costs(ratios: Sequence[float], divergences: Sequence[float], units: int) -> Float[Tensor, " units"]:
    """What each unit of a module costs, the least important first, by the slope of the module's curve at its place.

    Args:
        ratios: of the module's units, ascending, above 0.
        divergences: what removing so much of the module alone was measured to cost; from none it costs nothing.
    """
    removed, costs = (torch.tensor([0.0, *values], dtype=torch.float64) for values in (ratios, divergences))
    slopes = (costs.diff() / removed.diff()).cummax(0).values.clamp_min(0)  # none falls for less than one before it
    middles = functional.pad((removed[1:] + removed[:-1]) / 2, (1, 0))
    slopes = functional.pad(slopes, (1, 0))
    places = (torch.arange(units, dtype=torch.float64) + 0.5) / units
    after = torch.searchsorted(middles, places).clamp(1, len(middles) - 1)
    share = ((places - middles[after - 1]) / (middles[after] - middles[after - 1])).clamp_max(1)
    return slopes[after - 1].lerp(slopes[after], share)


def corrected(
    importances: Sequence[Tensor], ratios: Sequence[float], curves: Sequence[Sequence[float]]
) -> list[Tensor]:
    """Importances (units) of all layers' modules of one kind, halfway to what their curves say.

    The geometric mean of both, as either is an estimate of the same: the foretold ones know the units, the measured
    ones the layers. Their median stays what it was, and with it about the share between attention and MLPs: most of
    their total is in units that never go.
    """
    means = []
    for foretold, curve in zip(importances, curves, strict=True):
        costs = torch.empty(len(foretold), dtype=torch.float64)
        costs[foretold.cpu().argsort(stable=True)] = unit_costs(ratios, curve, len(foretold))
        means.append((foretold.cpu().double() * costs).sqrt())
    before, after = (
        torch.cat([values.cpu().double() for values in each]).median().item() for each in (importances, means)
    )
    return [(mean * (before / after)).float() for mean in means] if after else list(importances)
