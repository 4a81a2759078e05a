"""Reads the layers of each model family into canonical blocks. Only this file depends on how a family names its
projections and norms.

A new family takes one entry in `FAMILIES` and one tiny model in tests/support/library/tiny_models.py. Fused projections
are split here.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from transformers import PreTrainedConfig, PreTrainedModel

from intraslice.core.errors import Message, UserError
from intraslice.core.weights import UNROTATED, AttentionWeights, HeadNorms, MLPWeights
from intraslice.modeling.attention import SlicedAttention
from intraslice.modeling.mlp import SlicedMLP
from intraslice.modeling.surgery import concatenated

Pair = tuple[Tensor, Tensor | None]  # a weight and its bias
DenseModule = Any  # a transformers module, whose attributes have no static types


@dataclass(frozen=True)
class Family:
    """How to read the layers of one `config.model_type`.

    `parallel`: attention and MLP read the same norm and add to the same residual state. `*_output_norm`: a norm between
    a module's output and the residual stream. `norm_offset`: norms multiply by this plus their weight.
    """

    projections: tuple[str, ...] = ("q_proj", "k_proj", "v_proj", "o_proj")  # or the first three as one
    mlp: tuple[str, ...] = ("gate_proj", "up_proj", "down_proj")  # or the first two as one
    gated: bool = True  # without a gate, `mlp` names up and down
    attention_norm: str = "input_layernorm"
    mlp_norm: str = "post_attention_layernorm"
    final_norm: str = "norm"
    parallel: bool = False
    attention_output_norm: str | None = None
    mlp_output_norm: str | None = None
    norm_offset: float = 0.0


def _pairs(module: DenseModule, names: Sequence[str], sizes: list[int]) -> list[Pair]:
    """The maps with these names, or, where there are fewer names than maps, the first one split by `sizes`."""
    maps = [getattr(module, name) for name in names]
    pairs = [(linear.weight.detach(), None if linear.bias is None else linear.bias.detach()) for linear in maps]
    (weight, bias), *others = pairs
    if len(others) == len(sizes):
        return pairs
    biases = [None] * len(sizes) if bias is None else bias.split(sizes)
    return [*zip(weight.split(sizes), biases, strict=True), *others]


FAMILIES: dict[str, Family] = {
    "llama": Family(),
    "mistral": Family(),
    "qwen2": Family(),  # queries, keys and values have biases
    "smollm3": Family(),  # every fourth layer has no position embedding
    "qwen3": Family(),  # queries and keys are normalised
    "gemma3_text": Family(
        mlp_norm="pre_feedforward_layernorm",
        attention_output_norm="post_attention_layernorm",
        mlp_output_norm="post_feedforward_layernorm",
        norm_offset=1.0,
    ),
    # Phi-4-mini too: part of each head is rotated.
    "phi3": Family(("qkv_proj", "o_proj"), ("gate_up_proj", "down_proj")),
    "phi": Family(
        ("q_proj", "k_proj", "v_proj", "dense"),
        ("fc1", "fc2"),
        gated=False,
        mlp_norm="input_layernorm",
        final_norm="final_layernorm",
        parallel=True,
    ),
}
REFUSED = {  # model types that are not supported, and the reason
    "intraslice": "this model is sliced already; choose a dense model, or load its local folder",
    "deci": "a GGUF file of this type is usually sliced already; choose a dense model, or load its folder",
    "gemma3": "this model also reads images; use a Gemma 3 for text only, whose type is gemma3_text",
}
# Fields of a configuration that change the function in a way that the modules here do not have.
UNSUPPORTED_FIELDS = ("attn_logit_softcapping", "final_logit_softcapping", "use_bidirectional_attention")


@dataclass(frozen=True)
class Block:
    """One decoder layer in canonical form."""

    attention: SlicedAttention
    mlp: SlicedMLP
    attention_norm: DenseModule
    mlp_norm: DenseModule
    parallel: bool
    attention_output_norm: nn.Module | None = None  # between the module's output and the residual stream
    mlp_output_norm: nn.Module | None = None


def head_width(config: PreTrainedConfig) -> int:
    """Number of channels per head of a dense model."""
    return getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads


def rotary_frequencies(model: PreTrainedModel, layer: int) -> Float[Tensor, " frequencies"]:
    """A layer's rotary frequencies in radians from one position to the next; with longrope those of short texts."""
    rotary, name = model.model.rotary_emb, "original_inv_freq"
    if not hasattr(rotary, name):  # each kind of layer has its own
        name = f"{model.config.layer_types[layer]}_{name}"
    return getattr(rotary, name).float().cpu()


def write_layer_(layer: DenseModule, block: Block, family: Family) -> None:
    """Copy a block's weights, in place, into a dense transformers layer of the same sizes: the inverse of reading."""
    attention, mlp = block.attention.weights(), block.mlp.weights()
    order, _ = _head_layout(block.attention.dim, 2 * int((attention.frequency[0] != UNROTATED).sum()))
    inverse = order.argsort()

    def rows(weight: Tensor, bias: Tensor | None, channels: Tensor | slice) -> Pair:
        return weight[:, channels].flatten(0, 1), None if bias is None else bias[:, channels].flatten()

    projections: list[Pair] = [
        rows(attention.query, attention.query_bias, inverse),
        rows(attention.key, attention.key_bias, inverse),
        rows(attention.value, attention.value_bias, slice(None)),
        (attention.output.flatten(1), attention.output_bias),
    ]
    maps: list[Pair] = [] if mlp.gate is None else [(mlp.gate, mlp.gate_bias)]
    maps += [(mlp.up, mlp.up_bias), (mlp.down, mlp.down_bias)]
    for module, names, pairs in ((layer.self_attn, family.projections, projections), (layer.mlp, family.mlp, maps)):
        first = pairs[: 1 + len(pairs) - len(names)]  # several where they are fused
        weights, biases = zip(*first, strict=True)
        pairs = [(torch.cat(weights), concatenated(biases)), *pairs[len(first) :]]
        for name, (weight, bias) in zip(names, pairs, strict=True):
            getattr(module, name).weight.data.copy_(weight)
            if bias is not None:
                getattr(module, name).bias.data.copy_(bias)
    if (norms := attention.norms) is not None:
        layer.self_attn.q_norm.weight.data[order] = norms.query
        layer.self_attn.k_norm.weight.data[order] = norms.key


def family_named(name: str) -> Family:
    """The entry for a `model_type`. Raises UserError if there is none."""
    if name not in FAMILIES:
        ways = Message(
            "expected one of {names}. To support it, add an entry to FAMILIES in intraslice/modeling/families.py",
            names=", ".join(FAMILIES),
        )
        reason = Message(REFUSED[name]) if name in REFUSED else ways
        raise UserError("model type {name!r} cannot be sliced: {reason}", name=name, reason=reason)
    return FAMILIES[name]


def family_of(config: PreTrainedConfig) -> Family:
    """The entry for a config's `model_type`. Raises UserError if there is none, or for a field it does not support."""
    name = config.model_type
    family = family_named(name)
    for field in UNSUPPORTED_FIELDS:
        if value := getattr(config, field, None):
            message = "this {name} model has {field} {value!r} and cannot be sliced; only models without it can"
            raise UserError(message, name=name, field=field, value=value)
    return family


def _head_layout(dim: int, rotated: int) -> tuple[Tensor, Tensor]:
    """Channel order of a dense head that puts every pair at (j, j + dim/2), and the frequency of each pair."""
    half = rotated // 2
    unrotated = torch.arange(2 * half, dim).view(-1, 2)
    order = torch.cat([torch.arange(half), unrotated[:, 0], torch.arange(half, 2 * half), unrotated[:, 1]])
    return order, torch.cat([torch.arange(half), torch.full((len(unrotated),), UNROTATED)])


def _read_attention(family: Family, attention: DenseModule, config: PreTrainedConfig) -> AttentionWeights:
    heads, kv_heads, dim = config.num_attention_heads, config.num_key_value_heads, attention.head_dim
    if getattr(attention, "qk_layernorm", False):
        raise UserError(
            "this Phi model normalises queries and keys (qk_layernorm); only models without it can be sliced"
        )
    sizes = [heads * dim, kv_heads * dim, kv_heads * dim]
    queries, keys, values, (output, output_bias) = _pairs(attention, family.projections, sizes)
    # Where each kind of layer has its own base, `rope_parameters` has an entry for each, and all channels are rotated.
    rotated = int(dim * config.rope_parameters.get("partial_rotary_factor", 1.0))
    if not getattr(attention, "use_rope", True):  # some layers of SmolLM3
        rotated = 0
    order, frequency = _head_layout(dim, rotated)

    def by_head(pair: Pair, count: int, channels: Tensor | slice) -> Pair:
        weight, bias = pair
        weight = weight.unflatten(0, (count, dim))[:, channels]
        return weight, None if bias is None else bias.unflatten(0, (count, dim))[:, channels]

    norms = None
    if hasattr(attention, "q_norm"):
        query_norm, key_norm = (norm.weight.detach()[order] for norm in (attention.q_norm, attention.k_norm))
        norms = HeadNorms(query_norm, key_norm, norm_epsilon(attention.q_norm), family.norm_offset)
    query, query_bias = by_head(queries, heads, order)
    key, key_bias = by_head(keys, kv_heads, order)
    value, value_bias = by_head(values, kv_heads, slice(None))
    return AttentionWeights(
        query=query,
        key=key,
        value=value,
        output=output.unflatten(1, (heads, dim)),
        query_bias=query_bias,
        key_bias=key_bias,
        value_bias=value_bias,
        output_bias=output_bias,
        kv_head=torch.arange(kv_heads).repeat_interleave(heads // kv_heads),
        frequency=frequency.expand(kv_heads, -1),
        scale=attention.scaling,
        norms=norms,
    )


def norm_epsilon(norm: DenseModule) -> float:
    """The constant that a LayerNorm or RMSNorm adds to the mean square."""
    return norm.eps if hasattr(norm, "eps") else norm.variance_epsilon


def _read_mlp(family: Family, mlp: DenseModule, config: PreTrainedConfig) -> MLPWeights:
    width = getattr(mlp, family.mlp[-1]).in_features
    *gates, (up, up_bias), (down, down_bias) = _pairs(mlp, family.mlp, [width] * (1 + family.gated))
    gate, gate_bias = gates[0] if gates else (None, None)
    activation = getattr(config, "hidden_act", None) or config.hidden_activation
    return MLPWeights(gate, up, down, gate_bias, up_bias, down_bias, activation)


def canonicalise(model: PreTrainedModel) -> None:
    """Replace, in place, every layer's attention and MLP by the canonical modules at full rank.

    Logits are unchanged up to rounding. Raises UserError for a family that is not in `FAMILIES`.
    """
    for index in range(len(model.model.layers)):
        canonicalise_layer_(model, index)


def canonicalise_layer_(model: PreTrainedModel, index: int) -> None:
    """`canonicalise` for one layer. Does nothing if the layer is canonical already."""
    family, layer = family_of(model.config), model.model.layers[index]
    if not isinstance(layer.self_attn, SlicedAttention):
        layer.self_attn = SlicedAttention(_read_attention(family, layer.self_attn, model.config), index)
        layer.mlp = SlicedMLP(_read_mlp(family, layer.mlp, model.config))


def blocks(model: PreTrainedModel) -> list[Block]:
    """The layers of a canonicalised model, in order."""
    return [block_of(layer, family_of(model.config)) for layer in model.model.layers]


def block_of(layer: DenseModule, family: Family) -> Block:
    """One canonical layer of a family."""
    attention_norm, mlp_norm = (getattr(layer, name) for name in (family.attention_norm, family.mlp_norm))
    names = (family.attention_output_norm, family.mlp_output_norm)
    output_norms = (None if name is None else getattr(layer, name) for name in names)
    return Block(layer.self_attn, layer.mlp, attention_norm, mlp_norm, family.parallel, *output_norms)
