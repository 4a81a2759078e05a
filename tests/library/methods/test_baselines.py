"""The simple baselines: scores counted by hand, budgets met, what stays is what scored best."""

from __future__ import annotations

import copy
from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

from intraslice.core.config import SliceConfig
from intraslice.core.linalg import damp, damp_by_channel
from intraslice.methods.baselines import magnitude_scores
from intraslice.methods.registry import METHODS
from intraslice.modeling.families import blocks, canonicalise

BASELINES = ("magnitude", "wanda", "flap")


def made(case, baseline: str, sparsity: float):
    method, model = METHODS[baseline], case.loaded.model
    plan = method.plan(model, case.stats, SliceConfig(sparsity))
    return plan, method.slice(model, plan, case.stats, case.tokens, progress=False)


def test_without_a_bias_rivals_take_as_much_of_either_kind(tiny_case):
    plan, _ = made(tiny_case("llama-gqa"), "magnitude", 0.4)
    assert plan.reasons.bias == 1
    ratios = [sum(kind) for kind in zip(*((own.attention_ratio, own.mlp_ratio) for own in plan.layers), strict=True)]
    assert ratios[0] == pytest.approx(ratios[1], rel=0.1)


@torch.no_grad()
def test_magnitude_without_repair_is_the_dense_model_with_the_rest_zeroed(family_case):
    plan, model = made(family_case, "magnitude", 0.4)
    zeroed = copy.deepcopy(family_case.loaded.model)
    for block, layer in zip(blocks(zeroed), plan.layers, strict=True):
        heads, neurons = magnitude_scores(block)
        output = block.attention.o_proj.weight.unflatten(1, (block.attention.heads, -1))
        assert set(layer.heads) == set(heads.topk(len(layer.heads)).indices.tolist())
        output[:, [head for head in range(len(heads)) if head not in layer.heads]] = 0
        block.mlp.down_proj.weight[:, neurons.argsort(descending=True)[layer.neurons :]] = 0
    assert_close(model(family_case.tokens).logits, zeroed(family_case.tokens).logits, atol=1e-4, rtol=1e-4)


@torch.no_grad()
@pytest.mark.parametrize(
    ("method", "damped"), [("wanda", damp_by_channel), ("flap", damp_by_channel), ("modegpt", damp)]
)
def test_mlps_are_refitted_with_the_ridge_of_their_method(tiny_case, method: str, damped: Callable[[Tensor], Tensor]):
    """`W_down[:, kept] + W_down[:, cut] (S_kk^-1 S_kc)^T`; baselines have the ridge of `intraslice`."""
    case = tiny_case("llama-gqa")
    _, model = made(case, method, 0.4)
    dense, sliced = (blocks(each)[0].mlp.weights() for each in (case.loaded.model, model))
    is_kept = (dense.up[:, None] == sliced.up).all(-1).any(1)
    moment = damped(case.stats.layers[0].mlp_moment).double()
    repair = torch.linalg.solve(moment[is_kept][:, is_kept], moment[is_kept][:, ~is_kept])
    expected = dense.down[:, is_kept].double() + dense.down[:, ~is_kept].double() @ repair.T
    assert_close(sliced.down.double(), expected, atol=1e-4, rtol=1e-4)


@torch.no_grad()
def test_activation_scores_are_those_of_the_rows(tiny_case):
    """Both scores, from the rows that enter the output maps of a layer."""
    case = tiny_case("phi3")
    block, stats = blocks(case.loaded.model)[1], case.stats.layers[1]
    rows: dict[str, Tensor] = {}
    linears = {"attention": block.attention.o_proj, "mlp": block.mlp.down_proj}
    handles = [
        linear.register_forward_pre_hook(lambda *call, name=name: rows.update({name: call[1][0].flatten(0, 1)}))
        for name, linear in linears.items()
    ]
    case.loaded.model(case.tokens)
    for handle in handles:
        handle.remove()
    wanda = {name: linears[name].weight.abs().sum(0) * rows[name].norm(dim=0) for name in rows}
    flap = {name: linears[name].weight.square().sum(0) * rows[name].var(0, correction=0) for name in rows}
    for name, wanted in (("wanda", wanda), ("flap", flap)):
        heads, neurons = METHODS[name].scores(block, stats, case.stats.tokens)
        assert_close(heads, wanted["attention"].view(block.attention.heads, -1).sum(1), atol=1e-5, rtol=1e-3)
        assert_close(neurons, wanted["mlp"], atol=1e-5, rtol=1e-3)


def test_magnitude_scores_by_hand(tiny_llama_gqa):
    model = tiny_llama_gqa()
    layer = model.model.layers[0]
    attention, mlp = layer.self_attn, layer.mlp
    shared = attention.k_proj.weight[8:16].square().sum() + attention.v_proj.weight[8:16].square().sum()
    fourth = attention.q_proj.weight[24:32].square().sum() + attention.o_proj.weight[:, 24:32].square().sum()
    fourth = fourth + shared / 3
    neuron = mlp.gate_proj.weight[5].square().sum() + mlp.up_proj.weight[5].square().sum()
    neuron = neuron + mlp.down_proj.weight[:, 5].square().sum()
    canonicalise(model)
    heads, neurons = magnitude_scores(blocks(model)[0])
    assert_close(heads[3], fourth)
    assert_close(neurons[5], neuron)


def test_ranks_and_standard_scores():
    scores = torch.tensor([3.0, 1.0, 2.0, 6.0])
    assert METHODS["wanda"].comparable(scores).tolist() == [0.5, 0.0, 0.25, 0.75]
    assert_close(METHODS["flap"].comparable(scores), (scores - 3) / scores.std())
    assert METHODS["flap"].comparable(torch.ones(3)).tolist() == [0, 0, 0]
