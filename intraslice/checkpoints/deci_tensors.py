"""Converts a model's tensors to those of llama.cpp's `deci` architecture.

`deci` has a number of heads, key/value heads and MLP neurons for each layer. Head width, rotary frequencies and softmax
scale are the same for all layers, and all query groups of a layer have the same size. Narrow heads and ragged groups
are therefore padded with zeros, which keeps the function: fewer heads and neurons make a smaller file, narrower heads
do not.
"""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional
from transformers import PreTrainedConfig, PreTrainedModel

from intraslice.core.errors import UserError
from intraslice.core.weights import UNROTATED, AttentionWeights, MLPWeights
from intraslice.modeling.families import blocks, head_width, rotary_frequencies
from intraslice.modeling.offload import resident
from intraslice.planning.sizes import BLOCK

DECI = "llama.cpp's `deci` architecture (the only one with sizes per layer)"
SAVE_AS_FOLDER = "save it as a folder, which transformers loads"
# Frequencies do not depend on the length of the text; those of longrope not up to its `short_context`.
_ROTARY = ("default", "linear", "llama3", "yarn", "longrope")
_NO_ROTATION = 1e30  # divides the frequency of a pair that is not rotated


@dataclass(frozen=True)
class Heads:
    """Properties that all heads of a model share."""

    width: int
    base: float  # of llama.cpp's frequencies, `base^(-2 j / width)` for pair j
    factors: Float[Tensor, " pairs"] | None  # divisors of these frequencies; None if all are 1
    rotated: int  # number of rotated pairs, which come first
    gain: float  # of the rotated queries, and of the rotated keys


class PaddedTensor(NamedTuple):
    """A tensor in float32 with `kept` values from the model, which `unpad` selects; the others are padding zeros."""

    values: Tensor
    kept: int
    unpad: Callable[[Tensor], Tensor]  # from the shape of `values` to the shape in `core/weights.py`


Store = Callable[[str, Tensor], Tensor]  # a tensor's name and values -> its values after a round trip through the file
_ATTENTION = {"query": "attn_q", "key": "attn_k", "value": "attn_v", "output": "attn_output"}
_MLP = {"gate": "ffn_gate", "up": "ffn_up", "down": "ffn_down"}


def short_context(config: PreTrainedConfig) -> int | None:
    """The number of tokens up to which a model with longrope, such as Phi-4-mini, has its first frequencies."""
    rotary = config.rope_parameters
    return rotary["original_max_position_embeddings"] if rotary["rope_type"] == "longrope" else None


def shared_heads(model: PreTrainedModel) -> Heads:
    """Head width and rotary frequencies of a model. Raises UserError if they change with the text or the layer."""
    config = model.config
    rope_type, base = config.rope_parameters["rope_type"], config.rope_parameters["rope_theta"]
    if rope_type not in _ROTARY:
        raise UserError(
            f"the rotary frequencies of this model ({rope_type}) change with the length of the text, which {DECI} does "
            f"not support; {SAVE_AS_FOLDER}"
        )
    width = head_width(config)
    inverse_frequencies = rotary_frequencies(model, 0).double()
    rotated, gain = len(inverse_frequencies), model.model.rotary_emb.attention_scaling
    unrotated = max((block.attention.unrotated for block in blocks(model)), default=0)
    if unrotated > width // 2 - rotated:
        raise UserError(
            f"some layers of this model apply rotary position embeddings to channels that others leave out, and {DECI} "
            f"applies them to the same channels in every layer; {SAVE_AS_FOLDER}"
        )
    factors = torch.full((width // 2,), _NO_ROTATION, dtype=torch.float64)
    factors[:rotated] = base ** (-2 * torch.arange(rotated, dtype=torch.float64) / width) / inverse_frequencies
    unscaled = bool(torch.isclose(factors, torch.ones_like(factors), rtol=1e-5).all())
    return Heads(width, base, None if unscaled else factors.float(), rotated, gain)


def deci_tensors(model: PreTrainedModel) -> Iterator[tuple[str, PaddedTensor]]:
    """Every tensor of the model with llama.cpp's name, one at a time, without a tied head."""
    heads = shared_heads(model)
    yield "token_embd.weight", _unpadded(model.model.embed_tokens.weight)
    if heads.factors is not None:
        yield "rope_freqs.weight", _unpadded(heads.factors)
    for index, block in enumerate(blocks(model)):
        attention, mlp = block.attention, block.mlp
        tensors: dict[str, PaddedTensor] = {}
        # deci takes the head width from layer 0, and has no output bias in a layer without heads.
        if index == 0 or attention.heads or attention.o_proj.bias is not None:
            with resident(attention):
                tensors |= attention_tensors(attention.weights(), heads)
            tensors["attn_norm.weight"] = _unpadded(block.attention_norm.weight)
        with resident(mlp):
            tensors |= mlp_tensors(mlp.weights())
        tensors["ffn_norm.weight"] = _unpadded(block.mlp_norm.weight)
        for name, tensor in tensors.items():
            yield f"blk.{index}.{name}", tensor
    yield "output_norm.weight", _unpadded(model.model.norm.weight)
    if not model.config.tie_word_embeddings:
        yield "output.weight", _unpadded(model.lm_head.weight)


def attention_tensors(weights: AttentionWeights, heads: Heads) -> dict[str, PaddedTensor]:
    """Heads padded to full width, in groups padded to the size of the largest; without heads, one head of zeros.

    A query of zeros attends uniformly, and the zero columns of the output map drop its result. The softmax scale is
    folded into the queries, as llama.cpp's scale is `1 / sqrt(width)`.
    """
    kv_head, frequency = weights.kv_head.cpu(), weights.frequency.cpu()
    groups, group_size = max(1, len(weights.key)), max(1, int(kv_head.bincount(minlength=1).max()))
    group_position = (kv_head[:, None] == kv_head).tril(-1).sum(1)  # queries of the same group
    queries, keys = kv_head * group_size + group_position, torch.arange(len(weights.key))
    channels = interleaved(frequency, heads.rotated)
    values = torch.arange(weights.value.shape[1])
    scales = weights.scale * math.sqrt(heads.width) * _rotary_gains(weights, heads)

    def rows(tensor: Tensor, count: int, indices: Tensor, columns: Tensor) -> PaddedTensor:
        full = torch.zeros(count, heads.width, *tensor.shape[2:])
        full[indices[:, None], columns] = tensor.float().cpu()

        def unpad(padded: Tensor) -> Tensor:
            return padded.unflatten(0, (count, heads.width))[indices[:, None], columns]

        return PaddedTensor(full.flatten(0, 1), tensor.numel(), unpad)

    query, query_bias = weights.query.float().cpu() * scales[..., None], weights.query_bias
    query_bias = None if query_bias is None else query_bias.float().cpu() * scales
    all_queries = groups * group_size
    tensors = {}
    for name, weight, bias, count, indices, columns in (
        ("attn_q", query, query_bias, all_queries, queries, channels[kv_head]),
        ("attn_k", weights.key, weights.key_bias, groups, keys, channels),
        ("attn_v", weights.value, weights.value_bias, groups, keys, values),
    ):
        tensors[f"{name}.weight"] = rows(weight, count, indices, columns)
        if bias is not None:
            tensors[f"{name}.bias"] = rows(bias, count, indices, columns)
    tensors["attn_output.weight"] = _transposed(rows(weights.output.movedim(0, -1), all_queries, queries, values))
    if weights.output_bias is not None:
        tensors["attn_output.bias"] = _unpadded(weights.output_bias)
    return tensors


def _rotary_gains(weights: AttentionWeights, heads: Heads) -> Float[Tensor, "heads dim"]:
    """llama.cpp does not scale the rotated channels, so that their gain is folded into the queries."""
    gains = torch.where(weights.frequency.cpu() == UNROTATED, 1.0, heads.gain**2)
    return gains.repeat(1, 2)[weights.kv_head.cpu()]


def stored_attention(weights: AttentionWeights, heads: Heads, store: Store) -> AttentionWeights:
    """The attention in float32 after its tensors went through `store`. Its scale is llama.cpp's."""
    tensors = _after(store, attention_tensors(weights, heads), _ATTENTION)
    gains, scale = _rotary_gains(weights, heads), 1 / math.sqrt(heads.width)
    tensors["query"] = tensors["query"] / gains[..., None]
    if tensors["query_bias"] is not None:
        tensors["query_bias"] = tensors["query_bias"] / gains
    return replace(weights, **tensors, scale=scale)


def stored_mlp(weights: MLPWeights, store: Store) -> MLPWeights:
    """The MLP in float32 after its tensors went through `store`."""
    return replace(weights, **_after(store, mlp_tensors(weights), _MLP))


def _after(store: Store, tensors: dict[str, PaddedTensor], names: dict[str, str]) -> dict[str, Any]:
    """Unpadded weights and biases after `store`, by their field in `core/weights.py`; None for missing ones."""
    stored = {name: tensor.unpad(store(name, tensor.values)) for name, tensor in tensors.items()}
    weights = {field: stored.get(f"{name}.weight") for field, name in names.items()}
    return weights | {f"{field}_bias": stored.get(f"{name}.bias") for field, name in names.items()}


def interleaved(frequency: Int[Tensor, "kv_heads pairs"], rotated: int) -> Int[Tensor, "kv_heads dim"]:
    """llama.cpp's index of each channel of a head: pair j of the full head has the channels 2 j and 2 j + 1."""
    unrotated = frequency == UNROTATED
    pairs = torch.where(unrotated, rotated + unrotated.cumsum(1) - 1, frequency)
    return torch.cat([2 * pairs, 2 * pairs + 1], dim=1)


def stored_neurons(neurons: int) -> int:
    """The stored width of an MLP, in whole blocks. At least one: deci drops the attention of a layer with width 0."""
    return max(BLOCK, -(-neurons // BLOCK) * BLOCK)


def mlp_tensors(weights: MLPWeights) -> dict[str, PaddedTensor]:
    """Gate, up and down, padded with zero neurons to a width of whole blocks."""
    neurons = len(weights.up)
    padding_rows = stored_neurons(neurons) - neurons

    def rows(tensor: Tensor) -> PaddedTensor:
        padding = (*(tensor.ndim - 1) * (0, 0), 0, padding_rows)
        padded_rows = functional.pad(tensor.float().cpu(), padding)
        return PaddedTensor(padded_rows, tensor.numel(), lambda padded: padded[:neurons])

    maps = {"gate.weight": weights.gate, "gate.bias": weights.gate_bias, "up.weight": weights.up}
    maps["up.bias"] = weights.up_bias
    tensors = {f"ffn_{name}": rows(tensor) for name, tensor in maps.items() if tensor is not None}
    tensors["ffn_down.weight"] = _transposed(rows(weights.down.T))
    if weights.down_bias is not None:
        tensors["ffn_down.bias"] = _unpadded(weights.down_bias)
    return tensors


def _transposed(tensor: PaddedTensor) -> PaddedTensor:
    """The columns of an output map, padded as the rows in `tensor`."""
    return PaddedTensor(tensor.values.T, tensor.kept, lambda padded: tensor.unpad(padded.T).movedim(-1, 0))


def _unpadded(tensor: Tensor) -> PaddedTensor:
    return PaddedTensor(tensor.detach().float().cpu(), tensor.numel(), lambda padded: padded)
