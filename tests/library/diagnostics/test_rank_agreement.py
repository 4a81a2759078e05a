"""Predictions and ranks by hand."""

from __future__ import annotations

from dataclasses import replace

import pandas
import pytest
import torch

from intraslice.diagnostics.sensitivity import (
    ModuleDamage,
    Sensitivity,
    compare_ranks,
    noise_ceiling,
    removed_importance,
)
from intraslice.planning.estimators import Importances


def test_fallen_importance_sums_the_least_important_units():
    importance = torch.tensor([4.0, 1.0, 3.0, 2.0])
    assert removed_importance(importance, 0.5) == 3.0
    assert removed_importance(importance, 0.6) == pytest.approx(3.0 + 0.4 * 3.0)
    assert removed_importance(importance, 1.0) == 10.0
    assert removed_importance(importance, 0.0) == 0.0


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
            ModuleDamage(layer, name, 0.5, 100, (value, value), (-value, -value))
            for name, value in zip(("attention", "mlp"), pair, strict=True)
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
    # Off by more than one rank of three: MLP 0 under both, attention 0 and 2 under fisher.
    misjudged = {(module.estimator, module.module, module.layer) for module in agreement.misjudged}
    assert misjudged == {
        ("pca", "mlp", 0),
        ("fisher", "mlp", 0),
        ("fisher", "attention", 0),
        ("fisher", "attention", 2),
    }
    worst = next(module for module in agreement.misjudged if module.module == "mlp")
    assert str(worst).startswith("layer 0 mlp does more damage than")
    assert str(worst).endswith("predicts: measured rank 1 of 3, predicted rank 3")


def test_the_loss_may_be_the_measure(tiny_case):
    profile = known_profile(tiny_case("llama-gqa"), [1.0, 2.0, 3.0])
    measured = losses([0.1, 0.2, 0.3], [0.3, 0.1, 0.2])
    assert compare_ranks(measured, profile, "loss").rho["pca"] == pytest.approx(
        {kind: -rho for kind, rho in compare_ranks(measured, profile, "kl").rho["pca"].items()}
    )


def test_what_noise_may_explain_is_not_misjudged(tiny_case):
    profile = known_profile(tiny_case("llama-gqa"), [1.0, 2.0, 3.0])
    measured = losses([0.1, 0.2, 0.3], [0.3, 0.1, 0.2])
    assert compare_ranks(measured, profile).ceiling == pytest.approx({"attention": 1.0, "mlp": 1.0, "all": 1.0})

    def with_error(damage: ModuleDamage) -> ModuleDamage:
        """Of two windows that lie so far apart, the mean has this standard error."""
        error, (value, _) = 0.04 if damage.module == "attention" else 0.06, damage.divergences
        return replace(damage, divergences=(value - error, value + error))

    agreement = compare_ranks(replace(measured, modules=tuple(map(with_error, measured.modules))), profile)
    # 0.3 - 2 x 0.04 is still above 0.2, so it is sure to come first; 0.3 - 2 x 0.06 might be second.
    assert {(module.module, module.layer) for module in agreement.misjudged} == {("attention", 0), ("attention", 2)}


@pytest.mark.parametrize("noise", [0.0, 1.0, 4.0, 100.0])
def test_the_ceiling_is_a_perfect_estimator_s_rho(noise):
    """Over many draws of noise, the ceiling is what the truth itself reads against the measured means."""
    generator, windows = torch.Generator().manual_seed(3), 16
    ceilings, reached = [], []
    for _ in range(30):
        truth = torch.randn(30, generator=generator, dtype=torch.float64)
        damages = truth[:, None] + noise * torch.randn(30, windows, generator=generator, dtype=torch.float64)
        ceilings.append(noise_ceiling(damages))
        both = pandas.DataFrame({"truth": truth, "measured": damages.mean(1)})
        reached.append(both.corr(method="spearman").iloc[0, 1])
    assert sum(ceilings) / 30 == pytest.approx(sum(reached) / 30, abs=0.02 if noise < 10 else 0.2)


def test_without_windows_or_modules_to_compare_there_is_no_ceiling():
    assert noise_ceiling(torch.rand(30, 1)) is None
    assert noise_ceiling(torch.rand(1, 16)) is None
    assert noise_ceiling(torch.ones(30, 16)) is None
