"""Importances whose plans reproduce measured ratios, such as those of `search/ratio_search.py`. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from intraslice.core.config import MODULE_KINDS, ModuleKind
from intraslice.planning.estimators.estimator import Importances
from intraslice.planning.profile import Profile, masked_parameters

ModuleId = tuple[int, ModuleKind]
Ratios = Mapping[ModuleId, float]  # of every module


def importances_along(
    profile: Profile, path: Sequence[tuple[float, Ratios]], estimator: str
) -> list[dict[ModuleKind, list[float]]]:
    """Importances of every layer, such that a plan of each measured sparsity has about the measured ratios.

    `path` has pairs of a sparsity and its ratios, both non-decreasing. Ratios in between, from 0 and to 1, are
    interpolated linearly. The order of the units is the estimator's.
    """
    layers = []
    for index, layer in enumerate(profile.layers):
        predicted: Importances = layer.importances[estimator]
        importances = {}
        for module in MODULE_KINDS:
            values: Tensor = getattr(predicted, module)
            ratios = [0.0, *(ratios[index, module] for _, ratios in path), 1.0]
            sparsities = [0.0, *(sparsity for sparsity, _ in path), 1.0]
            removed_at = torch.empty(len(values), dtype=torch.float64)
            removed_at[values.cpu().argsort(stable=True)] = removal_sparsities(ratios, sparsities, len(values))
            importances[module] = (removed_at * masked_parameters(layer.sizes, module, len(values))).tolist()
        layers.append(importances)
    return layers


def removal_sparsities(ratios: Sequence[float], sparsities: Sequence[float], units: int) -> Float[Tensor, " units"]:
    """The sparsity at which each unit of a module is removed, the least important unit first.

    Both sequences run from 0 to 1 and are non-decreasing.
    """
    removed, at = (torch.tensor(values, dtype=torch.float64) for values in (ratios, sparsities))
    positions = (torch.arange(units, dtype=torch.float64) + 0.5) / units
    after = torch.searchsorted(removed, positions, right=True)
    before = after - 1
    return at[before].lerp(at[after], (positions - removed[before]) / (removed[after] - removed[before]))
