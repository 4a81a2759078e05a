"""Layers whose attention or MLP goes whole: a constant is left, in every family, with caches and on the disk."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor
from transformers import DynamicCache, PreTrainedModel, StaticCache

import intraslice
from intraslice.core.config import SliceConfig
from intraslice.methods.registry import METHODS, slice_by
from intraslice.modeling.hidden_states import cache_keyword
from intraslice.modeling.residual import writer_name
from intraslice.planning.ratios import SlicePlan, make_plan
from intraslice.slicing.driver import slice_model

GONE = {"attention": (0, 2), "mlp": (1, 2)}  # layer 2 is but its residual stream


def plan_of(case, order: str = "one-shot") -> SlicePlan:
    """All else stays."""
    plan = make_plan(case.stats.profile, SliceConfig(0.0, order=order, iterative=order == "sequential"))
    layers = list(plan.layers)
    for index in GONE["attention"]:
        layers[index] = replace(layers[index], attention_ratio=1.0, heads=(), kv_heads=0)
    for index in GONE["mlp"]:
        layers[index] = replace(layers[index], mlp_ratio=1.0, neurons=0)
    return replace(plan, layers=tuple(layers))


@pytest.fixture(scope="module", params=["sequential", "one-shot"])
def hollow(request, family_case) -> PreTrainedModel:
    return slice_model(
        family_case.loaded.model,
        plan_of(family_case, request.param),
        family_case.stats,
        family_case.tokens,
        progress=False,
    )


def constants(model: PreTrainedModel) -> dict[tuple[str, int], Tensor | None]:
    modules = {"attention": "self_attn", "mlp": "mlp"}
    found = {}
    for kind, indices in GONE.items():
        for index in indices:
            module = getattr(model.model.layers[index], modules[kind])
            writer = getattr(module, writer_name(module))
            assert writer.in_features == 0
            found[kind, index] = writer.bias
    return found


@torch.no_grad()
def test_what_is_left_is_transformers_own_model_with_constants(family_case, hollow):
    """Whose output maps are zero, and whose biases are those of the slice."""
    case = family_case
    expected = type(case.original)(case.original.config).eval()
    expected.load_state_dict(case.original.state_dict())
    for (kind, index), bias in constants(hollow).items():
        layer = expected.model.layers[index]
        module = layer.self_attn if kind == "attention" else layer.mlp
        writer = next(
            getattr(module, name) for name in ("o_proj", "dense", "down_proj", "fc2") if hasattr(module, name)
        )
        writer.weight.zero_()
        assert (bias is None) == (writer.bias is None)
        if bias is not None:
            writer.bias.copy_(bias)
    tokens = case.tokens[:2]
    torch.testing.assert_close(hollow(tokens).logits, expected(tokens).logits, atol=2e-5, rtol=1e-4)


@torch.no_grad()
def test_a_constant_is_the_mean_of_what_the_module_wrote(tiny_case):
    """In the first layer, whose input no slicing changes."""
    case = tiny_case("llama-biased")
    hollow = slice_model(case.loaded.model, plan_of(case), case.stats, progress=False)
    written = []
    attention = case.loaded.model.model.layers[0].self_attn
    handle = attention.register_forward_hook(lambda module, inputs, outputs: written.append(outputs[0]))
    case.loaded.model(case.tokens)
    handle.remove()
    mean = torch.cat(written).flatten(0, 1).mean(0)
    torch.testing.assert_close(constants(hollow)["attention", 0], mean, atol=1e-5, rtol=1e-4)


def test_the_parameters_are_those_of_the_sizes(family_case, hollow):
    sizes = [layer.sizes for layer in family_case.stats.profile.layers]
    kept = [(i not in GONE["attention"], i not in GONE["mlp"]) for i in range(len(sizes))]
    expected = [
        size.parameters(heads * size.heads, heads * size.kv_heads, size.dim, mlp * size.neurons)
        for size, (heads, mlp) in zip(sizes, kept, strict=True)
    ]
    assert [sum(p.numel() for p in layer.parameters()) for layer in hollow.model.layers] == expected


@torch.no_grad()
@pytest.mark.parametrize("cache_class", [DynamicCache, StaticCache])
def test_caches_count_tokens_though_the_first_layer_keeps_none(family_case, hollow, cache_class):
    tokens = family_case.tokens[:2, :20]
    options = {"max_cache_len": 24} if cache_class is StaticCache else {}
    cache = {cache_keyword(hollow): cache_class(config=hollow.config, **options)}
    parts = [hollow(part, **cache, use_cache=True).logits for part in tokens.split([9, 6, 1, 4], dim=1)]
    torch.testing.assert_close(torch.cat(parts, 1), hollow(tokens, use_cache=False).logits, atol=2e-5, rtol=1e-4)


def test_padded_texts_generate_what_each_does_alone(family_case, hollow):
    options = {"max_new_tokens": 8, "do_sample": False, "eos_token_id": None, "pad_token_id": 0}
    short, long = family_case.tokens[0, :6], family_case.tokens[1, :15]
    tokens = torch.stack([torch.cat([torch.zeros(9, dtype=torch.long), short]), long])
    mask = torch.ones_like(tokens)
    mask[0, :9] = 0
    together = hollow.generate(tokens, attention_mask=mask, **options)
    for row, text in enumerate((short, long)):
        alone = hollow.generate(text[None], attention_mask=torch.ones_like(text)[None], **options)
        assert torch.equal(together[row, 15:], alone[0, len(text) :])


@torch.no_grad()
def test_a_saved_model_is_the_same_model(family_case, hollow, tmp_path):
    intraslice.save(hollow, family_case.loaded.tokenizer, tmp_path / "hollow", {"source": "tiny"})
    reloaded, _, _ = intraslice.load(tmp_path / "hollow")
    assert torch.equal(reloaded(family_case.tokens).logits, hollow(family_case.tokens).logits)
    assert [tuple(p.shape) for p in reloaded.parameters()] == [tuple(p.shape) for p in hollow.parameters()]


@pytest.mark.parametrize("method", ["intraslice", "intraslice+", "magnitude", "wanda", "flap"])
@pytest.mark.parametrize("shapes", ["free", "runtime"])
def test_locked_modules_go_whole_by_every_method(tiny_case, method, shapes):
    case = tiny_case("llama-biased")
    locked = ((0, "attention", 1.0), (1, "mlp", 1.0))
    config = SliceConfig(0.4, order="one-shot", cap=1.0, locked=locked, shapes=shapes, epochs=1)
    plan = METHODS[method].plan(case.loaded.model, case.stats, config)
    assert (plan.layers[0].heads, plan.layers[0].kv_heads, plan.layers[1].neurons) == ((), 0, 0)
    model = slice_by(method, case.loaded.model, plan, case.stats, case.tokens, progress=False)
    decoder = sum(p.numel() for p in model.model.layers.parameters())
    assert decoder == plan.parameters.sliced_decoder
    assert torch.isfinite(model(case.tokens).logits).all()
