"""A model with the weights of its GGUF file: rounded to the file's type and back."""

from __future__ import annotations

import copy
from dataclasses import replace
from typing import Any

import gguf
import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from intraslice.checkpoints.gguf_tensors import shared_heads, stored_attention, stored_mlp
from intraslice.checkpoints.to_gguf import GGUFType, head_name, stored_type, stored_values
from intraslice.core.progress import Progress, ProgressCallback, progress_callback
from intraslice.core.weights import AttentionWeights
from intraslice.modeling.attention import SlicedAttention
from intraslice.modeling.families import blocks
from intraslice.modeling.mlp import SlicedMLP
from intraslice.modeling.offload import resident
from intraslice.modeling.surgery import replace_modules


@torch.no_grad()
def rounded_model(
    model: PreTrainedModel, gguf_type: GGUFType, *, progress: ProgressCallback | bool = True
) -> PreTrainedModel:
    """A copy of a canonical model with exactly the weights that `write_gguf` stores, in float32, on the same device.

    The copy computes in float32, as the values of a quantised type are not representable in 16 bits. Activations are
    not rounded, unlike in llama.cpp. The model must be one that `require_deci` accepts.

    Raises:
        UserError: a value is beyond the range of float16.
    """
    report, heads, head = progress_callback(progress), shared_heads(model), head_name(model)
    layers = model.model.layers

    def store(name: str, values: Tensor) -> Tensor:
        kind = stored_type(name, values.shape, gguf_type, head)
        return torch.from_numpy(gguf.dequantize(stored_values(name, values, kind), kind)).float()

    def stored(name: str, parameter: nn.Parameter) -> nn.Parameter:
        values = store(name, parameter.detach().float().cpu()).to(parameter.device)
        return nn.Parameter(values, requires_grad=False)

    embedding, lm_head = model.model.embed_tokens.weight, model.lm_head.weight
    replacements: dict[nn.Module | nn.Parameter, nn.Module | nn.Parameter] = {
        embedding: stored("token_embd.weight", embedding)
    }
    if lm_head is not embedding:
        replacements[lm_head] = stored("output.weight", lm_head)
    for norm in (
        model.model.norm,
        *(norm for layer in blocks(model) for norm in (layer.attention_norm, layer.mlp_norm)),
    ):
        replacements[norm] = copy.deepcopy(norm).float()
    for index, block in enumerate(blocks(model)):
        report(Progress("round", index, len(layers)))
        with resident(block.attention):
            attention = block.attention.weights()
            attention = stored_attention(attention, heads, store) if len(attention.query) else _in_float32(attention)
        replacements[block.attention] = SlicedAttention(attention, index).to(model.device)
        with resident(block.mlp):
            replacements[block.mlp] = SlicedMLP(stored_mlp(block.mlp.weights(), store)).to(model.device)
    report(Progress("round", len(layers), len(layers)))
    return replace_modules(model, replacements)


def _in_float32(weights: AttentionWeights) -> AttentionWeights:
    """Attention without heads, of which the file has the output bias alone."""
    tensors: dict[str, Any] = {
        name: value.float()
        for name, value in vars(weights).items()
        if isinstance(value, Tensor) and value.is_floating_point()
    }
    return replace(weights, **tensors)
