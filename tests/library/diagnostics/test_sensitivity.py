"""Measured sensitivity against plain slicing and plain logits; stopped and gone on; predictions and ranks by hand."""

import os
from dataclasses import replace
from pathlib import Path
from unittest.mock import Mock

import pandas
import pytest
import torch
from stopping import Stopped, stop_when
from tiny_models import divergences_at_once, losses_at_once

from intraslice.core.progress import Progress
from intraslice.diagnostics import sensitivity
from intraslice.diagnostics.sensitivity import (
    ModuleDamage,
    Sensitivity,
    compare_ranks,
    cut_alone,
    measure_in_context,
    measure_sensitivity,
    noise_ceiling,
    removed_importance,
)
from intraslice.planning.estimators import Importances
from intraslice.planning.ratios import LayerPlan, SlicePlan

pytestmark = pytest.mark.usefixtures("own_cache")
MODULES = [(layer, module) for layer in range(3) for module in ("attention", "mlp")]


def evaluation(case):
    return case.tokens[:4, :20]


def with_layer(plan: SlicePlan, index: int, layer: LayerPlan) -> SlicePlan:
    return replace(plan, layers=(*plan.layers[:index], layer, *plan.layers[index + 1 :]))


def test_each_module_s_damage_is_that_of_a_model_with_it_alone_sliced(family_case):
    model, tokens, layers = family_case.dense, evaluation(family_case), family_case.stats.profile.layers
    events: list[Progress] = []
    measured = measure_sensitivity(family_case.loaded, family_case.stats, tokens, 0.4, progress=events.append)
    dense = losses_at_once(model, tokens)
    assert measured.base_loss == pytest.approx(dense.mean().item(), rel=1e-5)
    assert measured.tokens == dense.numel()
    assert [(damage.layer, damage.module) for damage in measured.modules] == MODULES
    assert list(dict.fromkeys(event.done for event in events)) == list(range(7))
    plan = family_case.plan(0.0)
    for damage in measured.modules:
        cut = cut_alone(plan.layers[damage.layer], layers[damage.layer], damage.module, 0.4)
        sliced = family_case.cut(with_layer(plan, damage.layer, cut))
        increases = (losses_at_once(sliced, tokens) - dense).mean(1)
        assert damage.increases == pytest.approx(increases.tolist(), abs=1e-5)
        divergences = divergences_at_once(model, sliced, tokens).mean(1)
        assert damage.divergences == pytest.approx(divergences.tolist(), rel=1e-2, abs=1e-6)
        value, error = damage.damage("kl")
        assert value == pytest.approx(divergences.mean().item(), rel=1e-2, abs=1e-6)
        assert error == pytest.approx((divergences.std() / 2).item(), rel=1e-2, abs=1e-6)
        assert damage.damage("loss").value == pytest.approx(increases.mean().item(), abs=1e-5)
        counts = [sum(p.numel() for p in counted.parameters()) for counted in (model, sliced)]
        assert damage.removed == counts[0] - counts[1] > 0


def test_in_context_a_damage_is_what_a_dense_module_heals(family_case):
    loaded, stats, tokens = family_case.loaded, family_case.stats, evaluation(family_case)
    plan = family_case.plan()
    sliced = family_case.cut(plan)
    measured = measure_in_context(loaded, stats, sliced, plan, tokens, progress=False)
    whole = divergences_at_once(loaded.model, sliced, tokens)
    assert measured.context.value == pytest.approx(whole.mean().item(), rel=1e-3)
    assert measured.ratio is None
    dense = vars(family_case.plan(0.0).layers[0])
    for damage in measured.modules:
        given = plan.layers[damage.layer]
        sizes = ("heads", "kv_heads", "dim") if damage.module == "attention" else ("neurons",)
        kept = replace(given, **{name: dense[name] for name in sizes})
        healed = family_case.cut(with_layer(plan, damage.layer, kept))
        heals = (whole - divergences_at_once(loaded.model, healed, tokens)).mean().item()
        assert damage.damage("kl").value == pytest.approx(heals, rel=1e-2, abs=1e-5)
        assert damage.ratio == (given.attention_ratio if damage.module == "attention" else given.mlp_ratio)
        counts = [sum(p.numel() for p in counted.parameters()) for counted in (healed, sliced)]
        assert damage.removed == counts[0] - counts[1]
    with torch.no_grad():
        sliced.model.layers[1].mlp.down_proj.weight.mul_(1.5)  # as another training of the same plan would
    again = measure_in_context(loaded, stats, sliced, plan, tokens, progress=False).context.value
    assert again == pytest.approx(divergences_at_once(loaded.model, sliced, tokens).mean().item(), rel=1e-3)


def test_no_forward_starts_before_its_own_layer(case):
    calls = []
    hooks = [
        layer.register_forward_hook(lambda *_, index=index: calls.append(index))
        for index, layer in enumerate(case.dense.model.layers)
    ]
    measure_sensitivity(case.loaded, case.stats, evaluation(case), 0.3, progress=False)
    for hook in hooks:
        hook.remove()
    # Once for the dense loss, once for the next layer's inputs, and for both modules of each layer up to its own
    # (a sliced layer is a copy that carries the hook).
    assert [calls.count(index) for index in range(3)] == [4, 6, 7]  # nothing reads what the last one would make


@pytest.fixture
def slice_alone(monkeypatch: pytest.MonkeyPatch) -> Mock:
    """Notes the modules that are measured."""
    monkeypatch.setattr(sensitivity, "slice_alone", noted := Mock(wraps=sensitivity.slice_alone))
    return noted


@pytest.mark.parametrize("stop", [2, 6])
def test_a_stopped_run_goes_on_where_it_was(case, slice_alone, stop):
    unbroken = measure_sensitivity(case.loaded, case.stats, evaluation(case), 0.3, progress=False)
    for file in (Path(os.environ["INTRASLICE_CACHE"]) / "sensitivity").iterdir():
        file.unlink()
    slice_alone.reset_mock()
    stopping = stop_when(lambda event: event.done == stop)
    with pytest.raises(Stopped):
        measure_sensitivity(case.loaded, case.stats, evaluation(case), 0.3, progress=stopping)
    first = slice_alone.call_count
    events: list[Progress] = []
    resumed = measure_sensitivity(case.loaded, case.stats, evaluation(case), 0.3, progress=events.append)
    assert events[0] == Progress("sensitivity", stop, 6)
    assert first == stop
    assert [call.args[2:4] for call in slice_alone.call_args_list] == MODULES
    for ours, theirs in zip(resumed.modules, unbroken.modules, strict=True):
        assert ours.removed == theirs.removed
        assert ours.divergences == pytest.approx(theirs.divergences)
    assert resumed.base_loss == unbroken.base_loss


def test_another_run_starts_anew(case, slice_alone):
    loaded, stats, tokens = case.loaded, case.stats, evaluation(case)
    layers = [replace(layer, attention_sum=layer.attention_sum + 1) for layer in stats.layers]
    for count, run in enumerate(
        [
            (loaded, stats, tokens, 0.3),
            (loaded, stats, tokens, 0.4),
            (loaded, stats, tokens - 1, 0.3),
            (replace(loaded, fingerprint="other"), stats, tokens, 0.3),
            (loaded, replace(stats, layers=layers), tokens, 0.3),
        ],
        1,
    ):
        for _ in range(2):
            measure_sensitivity(*run, progress=False)
            assert slice_alone.call_count == 6 * count


def test_fallen_importance_sums_the_least_important_units_and_too_little_has_no_ceiling():
    importance = torch.tensor([4.0, 1.0, 3.0, 2.0])
    assert removed_importance(importance, 0.5) == 3.0
    assert removed_importance(importance, 0.6) == pytest.approx(3.0 + 0.4 * 3.0)
    assert removed_importance(importance, 1.0) == 10.0
    assert removed_importance(importance, 0.0) == 0.0
    assert noise_ceiling(torch.rand(30, 1)) is None
    assert noise_ceiling(torch.rand(1, 16)) is None
    assert noise_ceiling(torch.ones(30, 16)) is None


def known_profile(case):
    """Layer i's neurons, principal channels and heads all have importance `i + 1`, its heads the negative."""
    profile = case.stats.profile
    layers = []
    for value, layer in enumerate(profile.layers, 1):
        pca = layer.importances["pca"]
        channels, neurons = torch.full_like(pca.attention, value), torch.full_like(pca.mlp, value)
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


def test_ranks_and_rho_by_hand(case):
    agreement = compare_ranks(losses([0.1, 0.2, 0.3], [0.3, 0.1, 0.2]), known_profile(case))
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
    of_fisher = {("fisher", *place) for place in (("mlp", 0), ("attention", 0), ("attention", 2))}
    assert misjudged == {("pca", "mlp", 0)} | of_fisher
    worst = next(module for module in agreement.misjudged if module.module == "mlp")
    assert str(worst).startswith("layer 0 mlp does more damage than")
    assert str(worst).endswith("predicts: measured rank 1 of 3, predicted rank 3")


def test_the_loss_may_be_the_measure_and_what_noise_may_explain_is_not_misjudged(case):
    profile = known_profile(case)
    measured = losses([0.1, 0.2, 0.3], [0.3, 0.1, 0.2])
    assert compare_ranks(measured, profile, "loss").rho["pca"] == pytest.approx(
        {kind: -rho for kind, rho in compare_ranks(measured, profile, "kl").rho["pca"].items()}
    )
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
