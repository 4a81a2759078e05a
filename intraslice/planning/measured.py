"""Importances that lead along measured ratios, such as `diagnostics/exchanges.py` finds. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from intraslice.core.config import MODULE_KINDS, ModuleKind
from intraslice.planning.estimators.estimator import Importances
from intraslice.planning.profile import Profile, unit_parameters

Place = tuple[int, ModuleKind]
Ratios = Mapping[Place, float]  # of every module


def importances_along(
    profile: Profile, path: Sequence[tuple[float, Ratios]], estimator: str
) -> list[dict[ModuleKind, list[float]]]:
    """Every layer's importances, such that a plan of each measured sparsity has about its ratios.

    `path` has sparsities, ascending, with ratios that none is below its earlier one. Between them, from nothing and to
    everything, ratios go in straight lines; the units' order is the estimator's.
    """
    layers = []
    for index, layer in enumerate(profile.layers):
        predicted: Importances = layer.importances[estimator]
        found = {}
        for module in MODULE_KINDS:
            values: Tensor = getattr(predicted, module)
            ratios = [0.0, *(ratios[index, module] for _, ratios in path), 1.0]
            sparsities = [0.0, *(sparsity for sparsity, _ in path), 1.0]
            falls = torch.empty(len(values), dtype=torch.float64)
            falls[values.cpu().argsort(stable=True)] = fallen_at(ratios, sparsities, len(values))
            found[module] = (falls * unit_parameters(layer.sizes, module, len(values))).tolist()
        layers.append(found)
    return layers


def fallen_at(ratios: Sequence[float], sparsities: Sequence[float], units: int) -> Float[Tensor, " units"]:
    """The sparsity at which each of a module's units falls, the least important first.

    Both sequences begin at 0 and end at 1, and neither ever falls.
    """
    gone, at = (torch.tensor(values, dtype=torch.float64) for values in (ratios, sparsities))
    places = (torch.arange(units, dtype=torch.float64) + 0.5) / units
    after = torch.searchsorted(gone, places, right=True)
    before = after - 1
    return at[before].lerp(at[after], (places - gone[before]) / (gone[after] - gone[before]))
