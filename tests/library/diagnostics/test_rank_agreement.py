"""Predictions and ranks by hand."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from intraslice.diagnostics.rank_agreement import compare_ranks, fallen_importance
from intraslice.diagnostics.sensitivity import ModuleLoss, Sensitivity, measure_sensitivity
from intraslice.planning.estimators import Importances
from intraslice.progress import finish


def test_fallen_importance_sums_the_least_important_units():
    importance = torch.tensor([4.0, 1.0, 3.0, 2.0])
    assert fallen_importance(importance, 0.5) == 3.0
    assert fallen_importance(importance, 0.6) == pytest.approx(3.0 + 0.4 * 3.0)
    assert fallen_importance(importance, 1.0) == 10.0
    assert fallen_importance(importance, 0.0) == 0.0


def known_profile(case, values: list[float]):
    """Layer i's neurons, principal channels and heads all have importance `values[i]`, its heads the negative."""
    profile = case.stats.profile
    layers = []
    for layer, value in zip(profile.layers, values, strict=True):
        neurons = torch.full_like(layer.importances["pca"].mlp, value)
        channels = torch.full_like(layer.importances["pca"].attention, value)
        heads = torch.full_like(layer.importances["fisher"].attention, 10 - value)
        importances = {"pca": Importances(channels, neurons), "fisher": Importances(heads, neurons)}
        layers.append(replace(layer, importances=importances))
    return replace(profile, layers=tuple(layers))


def losses(attention: list[float], mlp: list[float]) -> Sensitivity:
    modules = []
    for layer, pair in enumerate(zip(attention, mlp, strict=True)):
        modules += [
            ModuleLoss(layer, name, 100, value, 0.0) for name, value in zip(("attention", "mlp"), pair, strict=True)
        ]
    return Sensitivity(0.5, 2.0, 100, tuple(modules))


def test_ranks_and_rho_by_hand(tiny_case):
    agreement = compare_ranks(
        losses([0.1, 0.2, 0.3], [0.3, 0.1, 0.2]), known_profile(tiny_case("llama-gqa"), [1.0, 2.0, 3.0])
    )
    assert agreement.rho["pca"]["attention"] == pytest.approx(1.0)
    assert agreement.rho["fisher"]["attention"] == pytest.approx(-1.0)
    assert agreement.rho["pca"]["mlp"] == pytest.approx(-0.5)
    assert agreement.rho["fisher"]["mlp"] == agreement.rho["pca"]["mlp"]
    frame = agreement.modules.set_index(["module", "layer"])
    assert frame.loc["attention", "place"].tolist() == [3, 2, 1]
    assert frame.loc["attention", "place_pca"].tolist() == [3, 2, 1]
    assert frame.loc["attention", "place_fisher"].tolist() == [1, 2, 3]
    # Off by more than one place of three: MLP 0 under both, attention 0 and 2 under fisher.
    misjudged = {(module.estimator, module.module, module.layer) for module in agreement.misjudged}
    assert misjudged == {
        ("pca", "mlp", 0),
        ("fisher", "mlp", 0),
        ("fisher", "attention", 0),
        ("fisher", "attention", 2),
    }
    worst = next(module for module in agreement.misjudged if module.module == "mlp")
    assert str(worst).startswith("layer 0 mlp hurts more than")
    assert "number 1 of 3 as measured, number 3 as foretold" in str(worst)


def test_what_noise_may_explain_is_not_misjudged(tiny_case):
    profile = known_profile(tiny_case("llama-gqa"), [1.0, 2.0, 3.0])
    measured = losses([0.1, 0.2, 0.3], [0.3, 0.1, 0.2])
    sure = compare_ranks(measured, profile)
    assert sure.reliability == {"attention": 1.0, "mlp": 1.0, "all": 1.0}
    noisy = tuple(
        replace(loss, standard_error=0.04 if loss.module == "attention" else 0.06) for loss in measured.modules
    )
    agreement = compare_ranks(replace(measured, modules=noisy), profile)
    # 0.3 - 2 x 0.04 is still above 0.2, so it is sure to come first; 0.3 - 2 x 0.06 might be second.
    assert {(module.module, module.layer) for module in agreement.misjudged} == {("attention", 0), ("attention", 2)}
    assert agreement.reliability["attention"] == pytest.approx(1 - 0.04**2 / 0.01)
    drowned = tuple(replace(loss, standard_error=1.0) for loss in measured.modules)
    assert compare_ranks(replace(measured, modules=drowned), profile).reliability["mlp"] == 0.0


def test_no_order_no_rho(tiny_case):
    agreement = compare_ranks(
        losses([0.1, 0.2, 0.3], [0.3, 0.1, 0.2]), known_profile(tiny_case("llama-gqa"), [1.0, 1.0, 1.0])
    )
    assert agreement.rho["pca"]["attention"] is None


def test_every_family_is_judged(family_case, own_cache):
    tokens = family_case.tokens[:2]
    agreement = compare_ranks(
        finish(measure_sensitivity(family_case.loaded, family_case.stats, tokens)), family_case.stats.profile
    )
    assert len(agreement.modules) == 6
    assert all(-1 <= value <= 1 for by_module in agreement.rho.values() for value in by_module.values())
