"""Tiny models of every family, of transformers' own classes and with random weights: a factory each."""

import copy
import random
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch.nn import functional
from transformers import (
    Gemma3ForCausalLM,
    Gemma3TextConfig,
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    Phi3Config,
    Phi3ForCausalLM,
    PhiConfig,
    PhiForCausalLM,
    PreTrainedConfig,
    PreTrainedModel,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
    SmolLM3Config,
    SmolLM3ForCausalLM,
)

VOCABULARY = 256
WORDS = [f"w{index}" for index in range(4, VOCABULARY)]  # that of each token
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


@torch.no_grad()
def divergences_at_once(dense: PreTrainedModel, other: PreTrainedModel, tokens: torch.Tensor) -> torch.Tensor:
    """KL of every scored place (windows, window - 1), by torch's own."""
    tables = [
        model(input_ids=tokens, use_cache=False).logits[:, :-1].double().log_softmax(-1) for model in (dense, other)
    ]
    return functional.kl_div(tables[1], tables[0], log_target=True, reduction="none").sum(-1)


@torch.no_grad()
def entering(model: PreTrainedModel, modules: Sequence[torch.nn.Module], tokens: torch.Tensor) -> list[torch.Tensor]:
    """What enters each of the model's modules on the tokens (tokens, channels)."""
    entered: dict[torch.nn.Module, torch.Tensor] = {}
    with ExitStack() as hooks:
        for module in modules:
            hook = module.register_forward_pre_hook(
                lambda part, inputs: entered.update({part: inputs[0].flatten(0, 1)})
            )
            hooks.callback(hook.remove)
        model(tokens, use_cache=False)
    return [entered[module] for module in modules]


def write_words(file: Path, documents: int = 60) -> Path:
    """Write documents of 30 words each, drawn at random, with a blank line between them."""
    draw = random.Random(0)
    file.write_text("\n\n".join(" ".join(draw.choices(WORDS, k=30)) for _ in range(documents)))
    return file


def factory(
    seed: int,
    model: type[PreTrainedModel],
    config: type[PreTrainedConfig],
    sizes: tuple[int, int, int, int],
    head_dim: int | None = None,
    **fields: Any,
) -> ModelFactory:
    """Makes a model with the weights of a seed; of sizes: hidden size, neurons, query heads, key/value heads."""
    names = ("hidden_size", "intermediate_size", "num_attention_heads", "num_key_value_heads")
    given = SHARED | dict(zip(names, sizes, strict=True)) | ({"head_dim": head_dim} if head_dim else {}) | fields
    return lambda: randomised(model(config(**copy.deepcopy(given))), seed)


def scaled(factor: float, original: int) -> dict[str, Any]:
    """Llama 3's rotary frequencies for texts `factor` times as long."""
    bands = {"low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": original}
    return {"rope_type": "llama3", "rope_theta": 1e4, "factor": factor, **bands}


llama = partial(factory, model=LlamaForCausalLM, config=LlamaConfig)
biases = {"attention_bias": True, "mlp_bias": True}
FAMILIES: dict[str, ModelFactory] = {
    "llama-mha": llama(1, sizes=(56, 100, 7, 7)),
    # Heads times head dim (72) is not the hidden size (54).
    "llama-gqa": llama(2, sizes=(54, 132, 9, 3), head_dim=8, tie_word_embeddings=True),
    "llama-biased": llama(5, sizes=(64, 112, 8, 4), rope_parameters=scaled(4.0, 128), **biases),
    "phi3": factory(3, Phi3ForCausalLM, Phi3Config, (48, 108, 6, 2), sliding_window=None),
    # Half of each head is rotated; every linear map, and the head, has a bias.
    "phi": factory(4, PhiForCausalLM, PhiConfig, (48, 116, 3, 3), partial_rotary_factor=0.5),
    # A token sees the seven before it; heads times head dim (80) is not the hidden size (48).
    "mistral": factory(8, MistralForCausalLM, MistralConfig, (48, 104, 5, 5), head_dim=16, sliding_window=8),
    # Queries, keys and values have biases, the output map has none.
    "qwen2": factory(9, Qwen2ForCausalLM, Qwen2Config, (48, 120, 6, 2), tie_word_embeddings=True),
    # The layer in the middle rotates nothing.
    "smollm3": factory(10, SmolLM3ForCausalLM, SmolLM3Config, (64, 100, 8, 4), no_rope_layer_interval=2),
    # Its scaled frequencies and tied embeddings.
    "llama-3.2": llama(11, sizes=(48, 112, 6, 2), tie_word_embeddings=True, rope_parameters=scaled(32.0, 64)),
    "phi-4-mini": factory(  # a quarter of each head is not rotated; frequencies change beyond 64 tokens
        12,
        Phi3ForCausalLM,
        Phi3Config,
        (64, 96, 4, 2),
        partial_rotary_factor=0.75,
        original_max_position_embeddings=64,
        rope_parameters={
            "rope_type": "longrope",
            "rope_theta": 1e4,
            "short_factor": [1.0, 1.1, 1.2, 1.3, 1.4, 1.5],
            "long_factor": [1.0, 1.5, 2.0, 3.0, 5.0, 8.0],
        },
        sliding_window=None,
        tie_word_embeddings=True,
    ),
    # Queries and keys are normalised; heads times head dim (96) is not the hidden size (48).
    "qwen3": factory(13, Qwen3ForCausalLM, Qwen3Config, (48, 120, 6, 2), head_dim=16),
    "gemma3": factory(  # two layers of windows of 8 tokens with a rotary base of their own, norms around every module
        14,
        Gemma3ForCausalLM,
        Gemma3TextConfig,
        (48, 112, 4, 2),
        head_dim=16,
        query_pre_attn_scalar=24,
        sliding_window=8,
        layer_types=["sliding_attention", "full_attention", "sliding_attention"],
        rope_parameters={
            "sliding_attention": {"rope_type": "default", "rope_theta": 1e4},
            "full_attention": {"rope_type": "linear", "rope_theta": 1e6, "factor": 8.0},
        },
    ),
}
