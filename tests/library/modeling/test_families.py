"""Reading layers at the door: layouts, refusals, and rotary variants that the contract's models lack."""

import pytest
import torch
from refusing import refused
from tiny_models import factory
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

from intraslice.modeling.attention import SlicedAttention
from intraslice.modeling.families import FAMILIES, canonicalise, family_of


def test_what_is_no_family_or_computes_something_else_is_told_why():
    message = refused(family_of, GPT2Config())
    assert "'gpt2'" in message
    assert all(name in message for name in FAMILIES)
    assert "intraslice/modeling/families.py" in message
    assert "'gemma3' cannot be sliced: this model also reads images" in refused(family_of, Gemma3Config())
    for field in ("attn_logit_softcapping", "final_logit_softcapping"):
        assert f"{field} 30.0" in refused(family_of, Gemma3TextConfig(**{field: 30.0}))
    model = factory(1, PhiForCausalLM, PhiConfig, (32, 40, 2, 2), qk_layernorm=True)()
    assert "qk_layernorm" in refused(canonicalise, model)
    assert not any(isinstance(layer.self_attn, SlicedAttention) for layer in model.model.layers)


@torch.no_grad()
@pytest.mark.parametrize("tokens", [12, 30])  # within the original context, and past it
@pytest.mark.parametrize("partial", [1.0, 0.75])
def test_long_rope_is_exact_on_both_sides_of_its_switch(tokens, partial):
    pairs = int(16 * partial) // 2
    factors = {"short_factor": [1.0] * pairs, "long_factor": [1.0 + 0.5 * index for index in range(pairs)]}
    lengths = {"original_max_position_embeddings": 16, "max_position_embeddings": 64, "sliding_window": 20}
    rope = {"rope_type": "longrope", "rope_theta": 1e4} | factors
    fields = {"partial_rotary_factor": partial, "rope_parameters": rope} | lengths
    model = factory(1, Phi3ForCausalLM, Phi3Config, (32, 40, 2, 2), **fields)()
    ids = torch.randint(3, 64, (2, tokens))
    expected = model(ids).logits
    canonicalise(model)
    assert_close(model(ids).logits, expected, atol=1e-4, rtol=1e-4)
