"""A sliced model as an ordinary transformers checkpoint."""

from __future__ import annotations

import pytest
import torch
from transformers import AutoModelForCausalLM

from intraslice.checkpoints.to_transformers import plain_model
from intraslice.errors import UserError
from intraslice.modeling.families import canonicalise
from intraslice.modeling.mlp import SlicedMLP
from intraslice.slicing.mlp import slice_mlp


def _narrow(model, widths):
    canonicalise(model)
    for layer, width in zip(model.model.layers, widths, strict=True):
        neurons = layer.mlp.neurons
        layer.mlp = SlicedMLP(slice_mlp(layer.mlp.weights(), torch.eye(neurons), torch.zeros(neurons), 64, width))
    return model


@pytest.mark.parametrize("family", ["tiny_llama_mha", "tiny_llama_gqa", "tiny_phi3", "tiny_phi"])
def test_a_uniform_model_reloads_through_transformers_alone(family, request, tmp_path):
    sliced = _narrow(request.getfixturevalue(family)(), [40, 40, 40])
    tokens = torch.randint(3, 250, (2, 11))
    plain_model(sliced).save_pretrained(tmp_path)
    reloaded = AutoModelForCausalLM.from_pretrained(tmp_path, attn_implementation="sdpa")
    assert type(reloaded.model.layers[0].mlp) is not SlicedMLP
    assert reloaded.config.intermediate_size == 40
    torch.testing.assert_close(reloaded(tokens).logits, sliced(tokens).logits, rtol=1e-4, atol=1e-5)


def test_layers_that_differ_are_refused_by_name(tiny_llama_gqa):
    with pytest.raises(UserError, match="layer 2 differs"):
        plain_model(_narrow(tiny_llama_gqa(), [40, 40, 48]))
