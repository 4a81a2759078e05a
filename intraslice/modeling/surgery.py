"""A model with some of its parts exchanged, all other tensors shared."""

from __future__ import annotations

import copy

from torch import nn
from transformers import PreTrainedModel

from intraslice.modeling.attention import SlicedAttention
from intraslice.modeling.mlp import SlicedMLP


def assemble(model: PreTrainedModel, modules: list[tuple[SlicedAttention, SlicedMLP]]) -> PreTrainedModel:
    """A copy of the model around the new modules; every other tensor is shared, not copied."""
    shared = [*model.parameters(), *model.buffers()]
    memo = {id(tensor): tensor for tensor in shared}
    for layer, (attention, mlp) in zip(model.model.layers, modules, strict=True):
        memo[id(layer.self_attn)], memo[id(layer.mlp)] = attention, mlp
    return copy.deepcopy(model, memo)


def with_parts(module: nn.Module, parts: dict[nn.Module, nn.Module]) -> nn.Module:
    """A copy of the module with some of its parts exchanged; every tensor is shared, not copied."""
    memo: dict[int, object] = {id(tensor): tensor for tensor in (*module.parameters(), *module.buffers())}
    memo.update({id(old): new for old, new in parts.items()})
    return copy.deepcopy(module, memo)
