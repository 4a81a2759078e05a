"""Cross-module PCA: exact at slice 0 against transformers' own classes, and every parameter accounted for."""

import copy
from functools import partial

import pytest
import torch
from refusing import refused
from tiny_models import entering, factory
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM, PhiConfig, PhiForCausalLM, PreTrainedModel

from intraslice.core.linalg import principal_axes
from intraslice.diagnostics.ablation import ablated_model
from intraslice.methods.crossmodule import plan_crossmodule, slice_crossmodule
from intraslice.modeling.families import blocks, canonicalise
from intraslice.modeling.residual import centre
from intraslice.planning.baseline_plans import CrossModulePlan


def tokens(sequences: int = 4, length: int = 40, seed: int = 0) -> Tensor:
    return torch.randint(3, 256, (sequences, length), generator=torch.Generator().manual_seed(seed))


def sliced(dense: PreTrainedModel, plan: CrossModulePlan) -> PreTrainedModel:
    return slice_crossmodule(dense, plan, None, tokens(), progress=False)


def parameter_count(module: torch.nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


@pytest.fixture(params=["llama-gqa", "phi3", "phi"])
def pair(request: pytest.FixtureRequest, tiny_case) -> tuple[PreTrainedModel, PreTrainedModel]:
    """Transformers' own model, and the canonical one of the same weights."""
    case = tiny_case(request.param)
    return case.original, case.dense


@pytest.mark.parametrize("slicing", [0.0, 0.1, 0.5])
def test_parameters_are_those_of_the_tensors_and_tying_weights_again_undoes_nothing(pair, slicing: float):
    dense = pair[1]
    plan = plan_crossmodule(dense, slicing=slicing)
    model = sliced(dense, plan)
    assert plan.parameters.sliced_decoder == parameter_count(model.model.layers)
    assert plan.parameters.sliced_total == parameter_count(model)
    assert plan.parameters.dense_total == parameter_count(dense)
    stored = {id(tensor): tensor.numel() for tensor in model.state_dict(keep_vars=True).values()}
    assert sum(stored.values()) == plan.parameters.sliced_total
    norm = model.model.final_layernorm if model.config.model_type == "phi" else model.model.norm
    untied = parameter_count(model.model.layers) + parameter_count(norm)
    untied += model.config.vocab_size * (plan.width + plan.hidden) + (0 if model.lm_head.bias is None else 256)
    assert plan.untied_total == untied
    before = model(tokens()).logits
    tied = model.lm_head.weight is model.model.embed_tokens.weight
    assert tied == pair[0].config.tie_word_embeddings
    model.tie_weights()
    assert tied == (model.lm_head.weight is model.model.embed_tokens.weight)
    assert torch.equal(model(tokens()).logits, before)
    assert torch.equal(copy.deepcopy(model)(tokens()).logits, before)


def test_widths_are_multiples_of_eight_and_the_config_keeps_the_dense_width(pair):
    dense = pair[1]
    hidden = dense.config.hidden_size
    assert plan_crossmodule(dense, slicing=0.0).width == hidden
    assert plan_crossmodule(dense, slicing=0.01).width == (hidden - 1) // 8 * 8
    assert plan_crossmodule(dense, slicing=0.99).width == 8
    assert plan_crossmodule(dense, slicing=1 - 32 / hidden).width == 32
    model = sliced(dense, plan_crossmodule(dense, slicing=1 - 32 / hidden))
    assert model.config.hidden_size == hidden
    widths = [tuple(shortcut.shape) for layer in model.model.layers for shortcut in layer.shortcuts]
    assert widths == [(32, 32)] * (len(widths) - 1) + [(32, hidden)]


def test_sparsity_takes_the_nearest_width(pair):
    dense = pair[1]
    hidden = dense.config.hidden_size
    removed = {width: plan_crossmodule(dense, slicing=1 - width / hidden).removed_fraction for width in (8, 16, 24, 32)}
    plan = plan_crossmodule(dense, sparsity=0.5)
    assert abs(plan.removed_fraction - 0.5) == min(abs(value - 0.5) for value in removed.values())
    assert list(removed.values()) == sorted(removed.values(), reverse=True)
    assert f"{plan.removed_fraction:.1%}" in plan.note
    uncut = plan_crossmodule(dense, sparsity=0.0)
    assert uncut.slicing == 0
    assert uncut.removed_fraction < 0
    assert "adds" in uncut.note


def test_a_rotation_without_a_cut_changes_no_logit_and_its_orthonormal_bases_map_the_state_back(pair):
    original, dense = pair
    model = sliced(dense, plan_crossmodule(dense, slicing=0.0))
    fresh = tokens(seed=1)
    assert not torch.equal(model.model.layers[1].shortcuts[0], torch.eye(model.config.hidden_size))
    torch.testing.assert_close(model(fresh).logits, original(fresh).logits, atol=1e-4, rtol=1e-4)
    for here, following in zip(model.model.layers, model.model.layers[1:], strict=False):
        assert torch.equal(here.bases[-1], following.bases[0])
    assert torch.equal(model.model.layers[-1].bases[-1], torch.eye(model.config.hidden_size))
    expected = original(tokens(seed=5), output_hidden_states=True).hidden_states[2]
    if model.config.model_type == "phi":  # LayerNorm never sees the mean, so the sliced stream drops it
        expected = expected - expected.mean(-1, keepdim=True)
    basis = model.model.layers[1].bases[-1]
    torch.testing.assert_close(basis.T @ basis, torch.eye(basis.shape[1]), atol=1e-5, rtol=0)
    (written,) = entering(model, [model.model.layers[2]], tokens(seed=5))
    torch.testing.assert_close(written @ basis.T, expected.flatten(0, 1), atol=1e-4, rtol=1e-4)


def test_a_tied_layernorm_model_centres_without_touching_the_head():
    make = factory(1, PhiForCausalLM, PhiConfig, (32, 64, 2, 2), tie_word_embeddings=True)
    dense, original = make(), make()
    canonicalise(dense)
    model = sliced(dense, plan_crossmodule(dense, slicing=0.0))
    torch.testing.assert_close(model(tokens()).logits, original(tokens()).logits, atol=1e-4, rtol=1e-4)


def test_counts_of_the_default_model_are_those_published():
    """SliceGPT on SmolLM2: 25 % slicing removes 14.2 % of the decoder, 10 % adds 3.8 % (no weights needed to count)."""
    config = LlamaConfig(
        vocab_size=49152, hidden_size=576, intermediate_size=1536, num_hidden_layers=30, num_attention_heads=9,
        num_key_value_heads=3, tie_word_embeddings=True,
    )  # fmt: skip
    with torch.device("meta"):
        model = LlamaForCausalLM(config)
    canonicalise(model)
    model.tie_weights()
    plans = {slicing: plan_crossmodule(model, slicing=slicing) for slicing in (0.1, 0.2, 0.25, 0.3, 0.4)}
    removed = [round(100 * plan.removed_fraction, 1) for plan in plans.values()]
    assert removed == [-3.8, 8.9, 14.2, 21.2, 33.2]
    assert round(plans[0.25].parameters.sliced_total / 1e6, 1) == 119.7
    assert round(plans[0.25].untied_total / 1e6, 1) == 140.7


NOTHING = torch.empty(0, 2, dtype=torch.long)  # one-shot slicing reads no token


def test_one_shot_is_exact_without_a_cut_and_no_worse_with_more_width(cross_module_case):
    dense, fresh = cross_module_case.dense, tokens(seed=1)
    expected, errors = cross_module_case.original(fresh).logits, []
    for slicing in (0.75, 0.4, 0.15, 0.0):
        plan = plan_crossmodule(dense, slicing=slicing, order="one-shot")
        model = slice_crossmodule(dense, plan, cross_module_case.stats, NOTHING, progress=False)
        errors.append((model(fresh).logits - expected).square().mean().item())
        assert parameter_count(model) == plan.parameters.sliced_total
    assert errors == sorted(errors, reverse=True)
    assert errors[-1] < 1e-8 < errors[-2]


def test_one_shot_bases_are_those_of_the_dense_models_own_states(cross_module_case):
    dense, width = cross_module_case.dense, 16
    plan = plan_crossmodule(dense, slicing=1 - width / dense.config.hidden_size, order="one-shot")
    layers = slice_crossmodule(dense, plan, cross_module_case.stats, NOTHING, progress=False).model.layers
    states = cross_module_case.original(cross_module_case.tokens, output_hidden_states=True).hidden_states
    for layer, entered in zip(layers, states, strict=False):  # the last is after the final norm
        rows = centre(entered.flatten(0, 1).double(), blocks(dense)[0].attention_norm)
        axes = principal_axes(rows.T @ rows)[1][:, : plan.width]
        basis = layer.bases[0].double()
        torch.testing.assert_close(basis @ basis.T, axes @ axes.T, atol=1e-3, rtol=0)


def test_norms_after_the_modules_are_refused(tiny_case):
    case = tiny_case("gemma3")
    for work in (
        partial(plan_crossmodule, case.dense, sparsity=0.2),
        partial(ablated_model, case.dense, "writes", 16, case.tokens),
    ):
        assert "norms after attention and MLP do not allow" in refused(work)
