"""A sliced model as an ordinary transformers checkpoint."""

from __future__ import annotations

import pytest
import torch
from opened import narrowed
from tiny_models import FAMILIES
from transformers import AutoModelForCausalLM

from intraslice.checkpoints.to_transformers import plain_model
from intraslice.core.errors import UserError
from intraslice.modeling.attention import SlicedAttention
from intraslice.modeling.mlp import SlicedMLP
from intraslice.slicing.attention import choose_channels, cut_queries_and_keys


@pytest.mark.parametrize("family", FAMILIES)
def test_a_uniform_model_reloads_through_transformers_alone(family, tmp_path):
    sliced = narrowed(FAMILIES[family](), [40, 40, 40])
    tokens = torch.randint(3, 250, (2, 11))
    plain_model(sliced).save_pretrained(tmp_path)
    reloaded = AutoModelForCausalLM.from_pretrained(tmp_path, attn_implementation="sdpa")
    assert type(reloaded.model.layers[0].mlp) is not SlicedMLP
    assert reloaded.config.intermediate_size == 40
    torch.testing.assert_close(reloaded(tokens).logits, sliced(tokens).logits, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("family", ["llama-gqa", "mistral", "qwen2", "smollm3", "qwen3", "gemma3"])
def test_fewer_groups_in_every_layer_are_held_by_transformers_too(family, tmp_path):
    sliced = narrowed(FAMILIES[family](), [40, 40, 40])
    for index, layer in enumerate(sliced.model.layers):
        weights = layer.self_attn.weights()
        heads = (weights.kv_head != index % 2).nonzero().flatten()  # another group goes in the second layer
        ones = torch.ones(layer.self_attn.heads, layer.self_attn.dim)
        channels, frequency = choose_channels(ones, weights, heads, layer.self_attn.dim)
        layer.self_attn = SlicedAttention(cut_queries_and_keys(weights, heads, channels, frequency), index)
    tokens = torch.randint(3, 250, (2, 11))
    plain_model(sliced).save_pretrained(tmp_path)
    reloaded = AutoModelForCausalLM.from_pretrained(tmp_path, attn_implementation="sdpa")
    assert reloaded.config.num_key_value_heads == sliced.config.num_key_value_heads - 1
    torch.testing.assert_close(reloaded(tokens).logits, sliced(tokens).logits, rtol=1e-4, atol=1e-5)


def test_layers_that_differ_are_refused_by_name(tiny_llama_gqa):
    with pytest.raises(UserError, match="layer 2 has a different shape from layer 0"):
        plain_model(narrowed(tiny_llama_gqa(), [40, 40, 48]))
