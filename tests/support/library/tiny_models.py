"""Tiny models of every family, of transformers' own classes and with random weights: a factory each."""

from __future__ import annotations

from collections.abc import Callable

import torch
from transformers import (
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    Phi3Config,
    Phi3ForCausalLM,
    PhiConfig,
    PhiForCausalLM,
    PreTrainedModel,
    Qwen2Config,
    Qwen2ForCausalLM,
    SmolLM3Config,
    SmolLM3ForCausalLM,
)

VOCABULARY = 256
SHARED = {
    "vocab_size": VOCABULARY,
    "num_hidden_layers": 3,
    "max_position_embeddings": 512,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
    "attn_implementation": "sdpa",
}

ModelFactory = Callable[[], PreTrainedModel]


def randomised(model: PreTrainedModel, seed: int) -> PreTrainedModel:
    """Weights and biases large enough for logits, norms and softmaxes to be far from trivial."""
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in model.named_parameters():
        centre = 1.0 if "norm" in name and name.endswith("weight") else 0.0
        parameter.data.normal_(centre, 0.1, generator=generator)
    return model.eval().requires_grad_(False)


@torch.no_grad()
def losses_at_once(model: PreTrainedModel, tokens: torch.Tensor) -> torch.Tensor:
    """Negative log-probability of every token but the first of each window (windows, window - 1), by one forward."""
    logits = model(input_ids=tokens, use_cache=False).logits[:, :-1].float()
    return -logits.log_softmax(-1).gather(2, tokens[:, 1:, None])[..., 0]


def llama_mha() -> PreTrainedModel:
    config = LlamaConfig(hidden_size=56, intermediate_size=100, num_attention_heads=7, **SHARED)
    return randomised(LlamaForCausalLM(config), 1)


def llama_gqa() -> PreTrainedModel:
    # Heads times head dim (72) is not the hidden size (54).
    config = LlamaConfig(
        hidden_size=54,
        intermediate_size=132,
        num_attention_heads=9,
        num_key_value_heads=3,
        head_dim=8,
        tie_word_embeddings=True,
        **SHARED,
    )
    return randomised(LlamaForCausalLM(config), 2)


def phi3() -> PreTrainedModel:
    config = Phi3Config(
        hidden_size=48,
        intermediate_size=108,
        num_attention_heads=6,
        num_key_value_heads=2,
        sliding_window=None,
        **SHARED,
    )
    return randomised(Phi3ForCausalLM(config), 3)


def phi() -> PreTrainedModel:
    # Half of each head is rotated; every linear map, and the head, has a bias.
    config = PhiConfig(
        hidden_size=48, intermediate_size=116, num_attention_heads=3, partial_rotary_factor=0.5, **SHARED
    )
    return randomised(PhiForCausalLM(config), 4)


def llama_biased() -> PreTrainedModel:
    config = LlamaConfig(
        hidden_size=64,
        intermediate_size=112,
        num_attention_heads=8,
        num_key_value_heads=4,
        attention_bias=True,
        mlp_bias=True,
        rope_parameters={
            "rope_type": "llama3",
            "rope_theta": 1e4,
            "factor": 4.0,
            "low_freq_factor": 1.0,
            "high_freq_factor": 4.0,
            "original_max_position_embeddings": 128,
        },
        **SHARED,
    )
    return randomised(LlamaForCausalLM(config), 5)


def phi3_windowed() -> PreTrainedModel:
    # A token sees the seven before it; the last quarter of each head is not rotated.
    config = Phi3Config(
        hidden_size=64,
        intermediate_size=96,
        num_attention_heads=4,
        num_key_value_heads=4,
        sliding_window=8,
        partial_rotary_factor=0.75,
        tie_word_embeddings=True,
        **SHARED,
    )
    return randomised(Phi3ForCausalLM(config), 6)


def mistral() -> PreTrainedModel:
    # A token sees the seven before it; heads times head dim (80) is not the hidden size (48).
    config = MistralConfig(
        hidden_size=48,
        intermediate_size=104,
        num_attention_heads=5,
        num_key_value_heads=5,
        head_dim=16,
        sliding_window=8,
        **SHARED,
    )
    return randomised(MistralForCausalLM(config), 8)


def qwen2() -> PreTrainedModel:
    # Queries, keys and values have biases, the output map has none.
    config = Qwen2Config(
        hidden_size=48,
        intermediate_size=120,
        num_attention_heads=6,
        num_key_value_heads=2,
        tie_word_embeddings=True,
        **SHARED,
    )
    return randomised(Qwen2ForCausalLM(config), 9)


def smollm3() -> PreTrainedModel:
    # The layer in the middle rotates nothing.
    config = SmolLM3Config(
        hidden_size=64,
        intermediate_size=100,
        num_attention_heads=8,
        num_key_value_heads=4,
        no_rope_layer_interval=2,
        **SHARED,
    )
    return randomised(SmolLM3ForCausalLM(config), 10)


FAMILIES: dict[str, ModelFactory] = {
    "llama-mha": llama_mha,
    "llama-gqa": llama_gqa,
    "llama-biased": llama_biased,
    "phi3": phi3,
    "phi3-windowed": phi3_windowed,
    "phi": phi,
    "mistral": mistral,
    "qwen2": qwen2,
    "smollm3": smollm3,
}
