"""Recovery after every slicing method: what it is worth, what it leaves alone, and where it is refused."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from test_distill import divergence

from intraslice.calibration.driver import calibrate
from intraslice.core.config import SliceConfig
from intraslice.core.errors import UserError
from intraslice.loading import load_model
from intraslice.methods.registry import METHODS, plan_by, slice_by
from intraslice.recovery import recover
from intraslice.recovery.distill import Distillation

UNTRAINED = [name for name, method in METHODS.items() if method.recovery(SliceConfig()) == "none"]


def sliced_by(name: str, case, tokens=None, **config):
    plan = plan_by(name, case.loaded.model, case.stats, SliceConfig(0.4, **config))
    return slice_by(name, case.loaded.model, plan, case.stats, case.tokens, tokens, progress=False)


def same_weights(first, second) -> bool:
    return all(map(torch.equal, first.state_dict().values(), second.state_dict().values()))


# What is trained differs between the methods only where the residual stream is sliced.
TELLING = [("intraslice", "phi"), ("intraslice", "smollm3"), ("crossmodule", "llama-gqa")]
OTHERS = [(name, "llama-gqa") for name in UNTRAINED if name not in ("intraslice", "crossmodule")]


@pytest.mark.parametrize(
    ("name", "family"), [*TELLING, *(pytest.param(*pair, marks=pytest.mark.slow) for pair in OTHERS)]
)
def test_every_method_gets_nearer_to_the_dense_model_and_nothing_else_changes(tiny_case, name, family):
    case = tiny_case(family)
    dense, sliced = case.loaded.model, sliced_by(name, case)
    shared = {id(parameter) for parameter in dense.parameters()}
    maps = {
        key
        for key, weight in sliced.named_parameters()
        if key.startswith("model.layers.") and weight.ndim == 2 and weight.numel() and id(weight) not in shared
    }
    maps = {key for key in maps if "shortcuts" not in key}
    assert any(not key.endswith(("o_proj.weight", "down_proj.weight")) for key in maps)  # what reads, as well
    for key in maps:  # slicing fits random tokens as well as it can be done
        sliced.get_parameter(key).mul_(0.5)
    before = [{key: tensor.clone() for key, tensor in model.state_dict().items()} for model in (dense, sliced)]
    far = divergence(dense, sliced, case.tokens)
    strong = Distillation(learning_rate=0.03)  # the steps are few
    assert strong.recover(dense, sliced, case.tokens, 3, progress=False) is sliced
    assert divergence(dense, sliced, case.tokens) < far
    assert all(torch.equal(tensor, before[0][key]) for key, tensor in dense.state_dict().items())
    for key, tensor in sliced.state_dict().items():
        assert torch.equal(tensor, before[1][key]) == (key not in maps), key
    assert not any(parameter.requires_grad for parameter in sliced.parameters())


@pytest.mark.parametrize("name", ["wanda", pytest.param("crossmodule", marks=pytest.mark.slow)])
def test_the_config_names_the_recovery_that_follows_slicing(tiny_case, name):
    case = tiny_case("llama-gqa")
    more = case.tokens[:4].flip(1)
    by_config = sliced_by(name, case, more, recovery="distill", epochs=2)
    by_hand = recover(case.loaded.model, sliced_by(name, case), more, "distill", epochs=2, progress=False)
    assert same_weights(by_config, by_hand)
    assert not same_weights(by_config, sliced_by(name, case))
    assert same_weights(sliced_by(name, case, more, recovery="distill", epochs=0), sliced_by(name, case))


@pytest.mark.parametrize("ignored", [{"iterative": True}, {"recovery": "distill"}])
def test_intraslice_plus_is_another_name(tiny_case, ignored):
    case = tiny_case("llama-mha")
    alias = sliced_by("intraslice+", case, **ignored)
    assert same_weights(alias, sliced_by("intraslice", case, order="one-shot", recovery="distill"))


def test_offloaded_weights_are_refused_before_anything_is_sliced(folder):
    offloaded, tokens = load_model(str(folder), device_map="disk"), torch.arange(96).view(4, 24) + 3
    stats = calibrate(offloaded, tokens, progress=False)
    with pytest.raises(UserError, match="in memory; load the model without a device map"):
        plan_by("intraslice", offloaded.model, stats, SliceConfig(0.3, recovery="distill"))
    with pytest.raises(UserError, match="in memory"):
        recover(offloaded.model, offloaded.model, tokens)


def test_quantised_weights_are_refused(tiny_case):
    case = tiny_case("llama-gqa")
    sliced = sliced_by("wanda", case)
    down = sliced.model.layers[0].mlp.down_proj
    down.weight = torch.nn.Parameter(down.weight.to(torch.int8), requires_grad=False)
    with pytest.raises(UserError, match="floating-point"):
        recover(case.loaded.model, sliced, case.tokens)


def test_a_plan_says_which_recovery_follows(tiny_case):
    case = tiny_case("llama-gqa")
    config = SliceConfig(0.3, recovery="distill", epochs=3)
    for name in METHODS:
        plan = plan_by(name, case.loaded.model, case.stats, config)
        assert (plan.recovery, plan.epochs) == ("distill", 3)
        expected = "distill" if name == "intraslice+" else "none"
        assert plan_by(name, case.loaded.model, case.stats, replace(config, recovery="none")).recovery == expected
