"""Reading layers at the door: layouts, refusals, and rotary variants that the contract's models lack."""

import pytest
import torch
from refusing import refused
from torch.testing import assert_close
from transformers import (
    Gemma3Config,
    Gemma3TextConfig,
    GPT2Config,
    Phi3Config,
    Phi3ForCausalLM,
    PhiConfig,
    PhiForCausalLM,
)

from intraslice.core.weights import UNROTATED
from intraslice.modeling.attention import SlicedAttention
from intraslice.modeling.families import FAMILIES, blocks, canonicalise, family_of

TINY = {
    "vocab_size": 64,
    "hidden_size": 32,
    "intermediate_size": 40,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
    "attn_implementation": "sdpa",
    "initializer_range": 0.3,
}


def test_what_is_no_family_or_computes_something_else_is_told_why():
    message = refused(family_of, GPT2Config())
    assert "'gpt2'" in message
    assert all(name in message for name in FAMILIES)
    assert "intraslice/modeling/families.py" in message
    assert "'gemma3' cannot be sliced: this model also reads images" in refused(family_of, Gemma3Config())
    for field in ("attn_logit_softcapping", "final_logit_softcapping"):
        assert f"{field} 30.0" in refused(family_of, Gemma3TextConfig(**{field: 30.0}))
    model = PhiForCausalLM(PhiConfig(qk_layernorm=True, **TINY))
    assert "qk_layernorm" in refused(canonicalise, model)
    assert not any(isinstance(layer.self_attn, SlicedAttention) for layer in model.model.layers)


def test_a_layer_that_knows_no_positions_rotates_nothing(tiny_case):
    frequencies = [block.attention.frequency for block in blocks(tiny_case("smollm3").loaded.model)]
    assert [(frequency == UNROTATED).all().item() for frequency in frequencies] == [False, True, False]
    attention = blocks(tiny_case("smollm3").loaded.model)[1].attention
    hidden, angles = torch.randn(1, 5, 64), torch.rand(1, 5, 8)
    query, key, _ = attention.project(hidden, (angles.cos(), angles.sin()))
    bare = attention.qkv_proj(hidden)
    assert torch.equal(query, bare[..., :64].unflatten(-1, (8, 8)).transpose(1, 2))
    assert torch.equal(key, bare[..., 64:96].unflatten(-1, (4, 8)).transpose(1, 2))


def test_partial_rotary_layout_puts_every_pair_half_a_head_apart():
    """Head dim 16, 8 channels rotated: pairs (0, 4) .. (3, 7), then the unrotated (8, 9) .. (14, 15)."""
    model = PhiForCausalLM(PhiConfig(partial_rotary_factor=0.5, **TINY))
    rows = model.model.layers[0].self_attn.q_proj.weight.detach().view(2, 16, 32)
    canonicalise(model)
    weights = model.model.layers[0].self_attn.weights()
    assert weights.frequency.tolist() == [[0, 1, 2, 3] + [UNROTATED] * 4] * 2
    assert torch.equal(weights.query, rows[:, [0, 1, 2, 3, 8, 10, 12, 14, 4, 5, 6, 7, 9, 11, 13, 15]])


@torch.no_grad()
@pytest.mark.parametrize("tokens", [12, 30])  # within the original context, and past it
@pytest.mark.parametrize("partial", [1.0, 0.75])
def test_long_rope_is_exact_on_both_sides_of_its_switch(tokens, partial):
    pairs = int(16 * partial) // 2
    config = Phi3Config(
        original_max_position_embeddings=16,
        max_position_embeddings=64,
        partial_rotary_factor=partial,
        sliding_window=20,
        rope_parameters={
            "rope_type": "longrope",
            "rope_theta": 1e4,
            "short_factor": [1.0] * pairs,
            "long_factor": [1.0 + 0.5 * index for index in range(pairs)],
        },
        **TINY,
    )
    torch.manual_seed(0)
    model = Phi3ForCausalLM(config).eval()
    ids = torch.randint(3, 64, (2, tokens))
    expected = model(ids).logits
    canonicalise(model)
    assert_close(model(ids).logits, expected, atol=1e-4, rtol=1e-4)
