"""Importances that lead along measured ratios: hand-computed falls, and plans that have the ratios again."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from intraslice.core.config import MODULE_KINDS, SliceConfig
from intraslice.planning.estimators import Importances
from intraslice.planning.ratios import importances_along, make_plan, removal_sparsities


def test_a_unit_falls_at_the_sparsity_where_its_modules_ratio_passes_it() -> None:
    # Units in the middles of quarters: 1/8, 3/8, 5/8, 7/8. Half is gone at 0.2, three quarters at 0.4, all at 1.
    falls = removal_sparsities([0.0, 0.5, 0.75, 1.0], [0.0, 0.2, 0.4, 1.0], 4)
    torch.testing.assert_close(falls, torch.tensor([0.05, 0.15, 0.3, 0.7], dtype=torch.float64))


def test_a_module_that_gives_nothing_yet_keeps_its_first_unit_for_later() -> None:
    falls = removal_sparsities([0.0, 0.0, 0.5, 1.0], [0.0, 0.2, 0.4, 1.0], 2)
    torch.testing.assert_close(falls, torch.tensor([0.3, 0.7], dtype=torch.float64))


@pytest.mark.parametrize("family", ["llama-mha", "llama-gqa", "phi"])
def test_plans_have_the_measured_ratios_and_the_estimators_order(tiny_case, family) -> None:
    profile = tiny_case(family).stats.profile
    path = []
    for sparsity in (0.2, 0.4):  # the ratios of another estimator are as good as any
        layers = make_plan(profile, SliceConfig(sparsity, "fisher")).layers
        ratios = {(i, "attention"): layer.attention_ratio for i, layer in enumerate(layers)}
        path.append((sparsity, ratios | {(i, "mlp"): layer.mlp_ratio for i, layer in enumerate(layers)}))
    path[1] = (0.4, {place: max(ratio, path[0][1][place]) for place, ratio in path[1][1].items()})
    layers = []
    for layer, own in zip(profile.layers, importances_along(profile, path, "pca"), strict=True):
        found = Importances(*(torch.tensor(own[module]) for module in MODULE_KINDS))
        for module in MODULE_KINDS:
            order = getattr(layer.importances["pca"], module).argsort(stable=True)
            assert getattr(found, module)[order].diff().min() >= 0
        layers.append(replace(layer, importances={"pca": found}))
    measured = replace(profile, layers=tuple(layers))
    for sparsity, ratios in path:
        for index, layer in enumerate(make_plan(measured, SliceConfig(sparsity)).layers):
            assert layer.attention_ratio == pytest.approx(ratios[index, "attention"], abs=0.06)
            assert layer.mlp_ratio == pytest.approx(ratios[index, "mlp"], abs=0.06)
