"""SmolLM2's Llama weights repack exactly into Phi-3: the two families, dense and sliced, must agree on real weights.

The first layers alone, so that it costs seconds.
"""

from __future__ import annotations

import copy

import pytest
import torch
from torch.testing import assert_close
from transformers import Phi3Config, Phi3ForCausalLM, PreTrainedModel

from intraslice.calibration.driver import calibrate
from intraslice.core.config import SliceConfig
from intraslice.evaluation.perplexity import perplexity
from intraslice.planning.ratios import make_plan
from intraslice.slicing.driver import slice_model

LAYERS = 3
ORDERS = ("sequential", "one-shot")


def first_layers(model: PreTrainedModel) -> PreTrainedModel:
    """A model of the first layers, sharing every tensor."""
    memo = {id(tensor): tensor for tensor in [*model.parameters(), *model.buffers()]}
    short = copy.deepcopy(model, memo)
    short.model.layers = short.model.layers[:LAYERS]
    short.config.num_hidden_layers = LAYERS
    return short


def repacked(llama: PreTrainedModel) -> Phi3ForCausalLM:
    """The same weights in transformers' Phi-3. At full rank the canonical names and layouts are Phi-3's own."""
    own = llama.config
    config = Phi3Config(
        vocab_size=own.vocab_size,
        hidden_size=own.hidden_size,
        intermediate_size=own.intermediate_size,
        num_hidden_layers=LAYERS,
        num_attention_heads=own.num_attention_heads,
        num_key_value_heads=own.num_key_value_heads,
        rms_norm_eps=own.rms_norm_eps,
        max_position_embeddings=8192,
        original_max_position_embeddings=8192,
        rope_parameters={
            "rope_type": "default",
            "rope_theta": own.rope_parameters["rope_theta"],
            "partial_rotary_factor": 1.0,
        },
        sliding_window=None,
        tie_word_embeddings=True,
        bos_token_id=1,
        eos_token_id=2,
        pad_token_id=2,
        attn_implementation="sdpa",
    )
    with torch.device("meta"):
        model = Phi3ForCausalLM(config)
    model.model.rotary_emb = type(model.model.rotary_emb)(config)  # its buffers are in no state dict
    model.load_state_dict(llama.state_dict(), assign=True)
    model.tie_weights()
    return model.eval().requires_grad_(False)


@pytest.fixture(scope="module")
def pair(default_model, as_loaded, tmp_path_factory):
    """Both families, calibrated on the same real text, and that text."""
    text = (
        "The river rises in the hills to the north of the town and flows past the old mill, where it was once crossed "
        "by a wooden bridge. In 1854 the railway company bought the land on both banks and built a station there. "
        "Since then the valley has been known for its apples, its paper, and a choir that sings every spring. "
    )
    tokens = default_model.tokenizer(text * 4, return_tensors="pt").input_ids[:, :256].view(4, 64)
    llama = first_layers(default_model.model)
    phi3 = repacked(llama)
    with torch.no_grad():
        untouched = phi3(tokens).logits
    loaded = [as_loaded(model) for model in (llama, phi3)]
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("INTRASLICE_CACHE", str(tmp_path_factory.mktemp("calibrations")))
        stats = [calibrate(model, tokens, progress=False) for model in loaded]
    return tokens, untouched, loaded, stats


@torch.no_grad()
def test_dense_logits_are_the_same(pair):
    tokens, untouched, (llama, phi3), _ = pair
    assert_close(llama.model(tokens).logits, untouched, atol=1e-3, rtol=1e-4)
    assert_close(phi3.model(tokens).logits, untouched, atol=1e-3, rtol=1e-4)


@pytest.mark.parametrize("order", ORDERS)
def test_sliced_models_are_the_same(pair, order):
    tokens, _, loaded, stats = pair
    perplexities = []
    for model, own in zip(loaded, stats, strict=True):
        plan = make_plan(own.profile, SliceConfig(0.3, order=order))
        assert plan.removed_fraction == pytest.approx(0.3, abs=0.01)
        sliced = slice_model(model.model, plan, own, tokens, progress=False)
        perplexities.append(perplexity(sliced, tokens, progress=False))
    assert perplexities[1] == pytest.approx(perplexities[0], rel=0.005)
