"""The saved shape of every layer, and empty modules of these shapes into which weights are loaded."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from intraslice.core.weights import AttentionWeights, HeadNorms, MLPWeights
from intraslice.modeling.attention import SlicedAttention
from intraslice.modeling.families import DenseModule, family_of
from intraslice.modeling.mlp import SlicedMLP
from intraslice.modeling.residual import BasisEmbedding, BasisNorm, CrossModuleLayer

Shape = dict[str, Any]  # of one layer, as JSON
LINEARS = ("self_attn.qkv_proj", "self_attn.o_proj", "mlp.gate_up_proj", "mlp.up_proj", "mlp.down_proj")


def shape_of(layer: DenseModule) -> Shape:
    """The shape of a canonical layer, dense or sliced."""
    attention, mlp, parameters = layer.self_attn, layer.mlp, {name for name, _ in layer.named_parameters()}
    shortcuts = [list(matrix.shape) for matrix in layer.shortcuts] if isinstance(layer, CrossModuleLayer) else []
    return {
        "heads": attention.heads,
        "kv_heads": attention.kv_heads,
        "dim": attention.dim,
        "value_dim": attention.value_dim,
        "kv_head": attention.kv_head.tolist(),
        "frequency": attention.frequency.tolist(),
        "scale": attention.scale,
        "norms": None if attention.norms is None else [attention.norms.epsilon, attention.norms.offset],
        "neurons": mlp.neurons,
        "gated": mlp.gated,
        "activation": mlp.activation,
        "shortcuts": shortcuts,
        "biases": [name for name in LINEARS if f"{name}.bias" in parameters],
    }


def per_layer_config(shapes: Sequence[Shape]) -> dict[str, dict[str, int]]:
    """The layers' sizes as transformers' `per_layer_config`, or nothing where it cannot say what a layer computes.

    It has fields for the numbers of heads and neurons, but not for narrower heads, removed rotary pairs, groups of
    unequal size, shortcut matrices, or layers without a module.
    """
    entries = {}
    for index, shape in enumerate(shapes):
        heads, kv_heads, dim = shape["heads"], shape["kv_heads"], shape["dim"]
        if not (heads and shape["neurons"]) or shape["shortcuts"] or shape["value_dim"] != dim:
            return {}
        group = heads // kv_heads
        has_even_groups = shape["kv_head"] == [head // group for head in range(heads)]
        has_all_pairs = shape["frequency"] == [list(range(dim // 2))] * kv_heads
        if not (has_even_groups and has_all_pairs and math.isclose(shape["scale"], dim**-0.5)):
            return {}
        sizes = {"num_attention_heads": heads, "num_key_value_heads": kv_heads, "head_dim": dim}
        entries[str(index)] = sizes | {"intermediate_size": shape["neurons"]}
    return entries


def shape_layers_(model: PreTrainedModel, shapes: Sequence[Shape]) -> None:
    """Replace the dense layers, in place, by empty modules of these shapes, on torch's default device.

    Raises ValueError if the number of layers differs; torch raises for impossible sizes.
    """
    family, hidden = family_of(model.config), model.config.hidden_size
    if len(shapes) != len(model.model.layers):
        raise ValueError(f"expected shapes of {len(model.model.layers)} layers, got {len(shapes)}")
    for index, (layer, shape) in enumerate(zip(model.model.layers, shapes, strict=True)):
        shortcuts = shape["shortcuts"]
        widths = shortcuts or [(hidden, hidden)]  # parallel attention and MLP share one shortcut
        attention = SlicedAttention(_attention(shape, *widths[0]), index)
        mlp = SlicedMLP(_mlp(shape, *widths[-1]))
        if shortcuts:
            norms = [BasisNorm(getattr(layer, name)) for name in (family.attention_norm, family.mlp_norm)]
            # transformers initialises linear maps, but not these.
            matrices = [torch.eye(*sizes) for sizes in shortcuts]
            model.model.layers[index] = CrossModuleLayer(family, attention, mlp, norms, matrices)
        else:
            layer.self_attn, layer.mlp = attention, mlp
    if shapes and shapes[0]["shortcuts"]:
        model.model.embed_tokens = _embedding(model, shapes[0]["shortcuts"][0][0])


def fill_buffers_(model: PreTrainedModel, shapes: Sequence[Shape]) -> None:
    """Fill the buffers that come from the shapes, in place, in modules that were built on the meta device."""
    for layer, shape in zip(model.model.layers, shapes, strict=True):
        layer.self_attn.fill_layout_(torch.tensor(shape["kv_head"], dtype=torch.long), _frequency(shape))


def _frequency(shape: Shape) -> Tensor:
    return torch.tensor(shape["frequency"], dtype=torch.long, device="cpu").view(shape["kv_heads"], shape["dim"] // 2)


def _attention(shape: Shape, reads: int, writes: int) -> AttentionWeights:
    heads, kv_heads, dim, value_dim = (shape[name] for name in ("heads", "kv_heads", "dim", "value_dim"))
    biased, norms = "self_attn.qkv_proj" in shape["biases"], None
    if shape["norms"]:  # that do nothing but normalise: transformers initialises linear maps, but not these
        epsilon, offset = shape["norms"]
        norms = HeadNorms(torch.full((dim,), 1 - offset), torch.full((dim,), 1 - offset), epsilon, offset)
    return AttentionWeights(
        query=torch.empty(heads, dim, reads),
        key=torch.empty(kv_heads, dim, reads),
        value=torch.empty(kv_heads, value_dim, reads),
        output=torch.empty(writes, heads, value_dim),
        query_bias=torch.empty(heads, dim) if biased else None,
        key_bias=torch.empty(kv_heads, dim) if biased else None,
        value_bias=torch.empty(kv_heads, value_dim) if biased else None,
        output_bias=torch.empty(writes) if "self_attn.o_proj" in shape["biases"] else None,
        kv_head=torch.tensor(shape["kv_head"], dtype=torch.long, device="cpu"),
        frequency=_frequency(shape),
        scale=shape["scale"],
        norms=norms,
    )


def _mlp(shape: Shape, reads: int, writes: int) -> MLPWeights:
    neurons, gated, biases = shape["neurons"], shape["gated"], shape["biases"]
    biased = ("mlp.gate_up_proj" if gated else "mlp.up_proj") in biases
    return MLPWeights(
        gate=torch.empty(neurons, reads) if gated else None,
        up=torch.empty(neurons, reads),
        down=torch.empty(writes, neurons),
        gate_bias=torch.empty(neurons) if gated and biased else None,
        up_bias=torch.empty(neurons) if biased else None,
        down_bias=torch.empty(writes) if "mlp.down_proj" in biases else None,
        activation=shape["activation"],
    )


def _embedding(model: PreTrainedModel, width: int) -> nn.Embedding:
    """The embedding in the first basis, which is fused into the table unless the head shares the table."""
    table, hidden = model.model.embed_tokens, model.config.hidden_size
    if model.config.tie_word_embeddings:
        return BasisEmbedding(nn.Parameter(table.weight, False), torch.eye(hidden, width), table.padding_idx)
    return nn.Embedding(table.num_embeddings, width, table.padding_idx)
