"""The tensors of llama.cpp's `deci` architecture, made of a model's own.

`deci` counts heads, key/value heads and MLP neurons by layer. Head width, rotary frequencies and softmax scale are one
for the whole model, and the query groups of a layer are of one size. What is narrower or ragged is therefore filled up
with zeros, so that the function stays the same: fewer heads and neurons make a smaller file, narrower heads do not.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional
from transformers import PreTrainedModel

from intraslice.core.errors import UserError
from intraslice.core.weights import UNROTATED, AttentionWeights, MLPWeights
from intraslice.modeling.families import blocks, head_width
from intraslice.modeling.offload import resident
from intraslice.planning.widths import BLOCK  # of quantised rows: an MLP of another width is rounded up to whole ones

INSTEAD = "save it as a folder, which transformers opens"
_ROTARY = ("default", "linear", "llama3", "yarn")  # whose frequencies do not depend on how long the text is
_STILL = 1e30  # divides the frequency of a pair that is not rotated


@dataclass(frozen=True)
class Heads:
    """What all heads of a model share."""

    width: int
    base: float  # of llama.cpp's frequencies, `base^(-2 j / width)` for pair j
    factors: Float[Tensor, " pairs"] | None  # by which those are divided; None where they are right as they are
    rotated: int  # pairs that are rotated, which come first
    gain: float  # of the rotated queries, and of the rotated keys


class Filled(NamedTuple):
    """A tensor in float32, of which `kept` values are the model's own and the others zeros."""

    values: Tensor
    kept: int


def shared_heads(model: PreTrainedModel) -> Heads:
    """Head width and rotary frequencies of a model, dense or sliced.

    Raises UserError where these change with the length of the text, or from layer to layer.
    """
    config = model.config
    kind, base = config.rope_parameters["rope_type"], config.rope_parameters["rope_theta"]
    if kind not in _ROTARY:
        raise UserError(
            f"the rotary frequencies of this model ({kind}) change with the length of the text, which llama.cpp's deci "
            f"does not do; {INSTEAD}"
        )
    width = head_width(config)
    own = model.model.rotary_emb.inv_freq.double().cpu()
    still = [count for block in blocks(model) for count in (block.attention.frequency == UNROTATED).sum(1).tolist()]
    if max(still, default=0) > width // 2 - len(own):
        raise UserError(
            f"some layers of this model rotate what others do not, and llama.cpp's deci rotates alike in all; {INSTEAD}"
        )
    factors = torch.full((width // 2,), _STILL, dtype=torch.float64)
    factors[: len(own)] = base ** (-2 * torch.arange(len(own), dtype=torch.float64) / width) / own
    right = bool(torch.isclose(factors, torch.ones_like(factors), rtol=1e-5).all())
    return Heads(width, base, None if right else factors.float(), len(own), model.model.rotary_emb.attention_scaling)


def deci_tensors(model: PreTrainedModel) -> Iterator[tuple[str, Filled]]:
    """Every tensor of the model by llama.cpp's name, one after the other. A tied head is not among them."""
    heads = shared_heads(model)
    yield "token_embd.weight", _whole(model.model.embed_tokens.weight)
    if heads.factors is not None:
        yield "rope_freqs.weight", _whole(heads.factors)
    for index, block in enumerate(blocks(model)):
        attention, mlp = block.attention, block.mlp
        tensors: dict[str, Filled] = {}
        # deci reads the head width off layer 0, and knows no output bias where there are no heads.
        if index == 0 or attention.heads or attention.o_proj.bias is not None:
            with resident(attention):
                tensors |= attention_tensors(attention.weights(), heads)
            tensors["attn_norm.weight"] = _whole(block.attention_norm.weight)
        with resident(mlp):
            tensors |= mlp_tensors(mlp.weights())
        tensors["ffn_norm.weight"] = _whole(block.mlp_norm.weight)
        for name, tensor in tensors.items():
            yield f"blk.{index}.{name}", tensor
    yield "output_norm.weight", _whole(model.model.norm.weight)
    if not model.config.tie_word_embeddings:
        yield "output.weight", _whole(model.lm_head.weight)


def attention_tensors(weights: AttentionWeights, heads: Heads) -> dict[str, Filled]:
    """Full-width heads in groups of the size of the largest one; of no head at all, one of zeros.

    A query of zeros attends to everything alike, and the columns of zeros in the output map drop what it finds. The
    softmax scale goes into the queries, as llama.cpp's is `1 / sqrt(width)`.
    """
    kv_head, frequency = weights.kv_head.cpu(), weights.frequency.cpu()
    groups, group_size = max(1, len(weights.key)), max(1, int(kv_head.bincount(minlength=1).max()))
    earlier = (kv_head[:, None] == kv_head).tril(-1).sum(1)  # queries of the same group
    queries, keys = kv_head * group_size + earlier, torch.arange(len(weights.key))
    channels = interleaved(frequency, heads.rotated)
    values = torch.arange(weights.value.shape[1])
    gains = torch.where(frequency == UNROTATED, 1.0, heads.gain**2).repeat(1, 2)[kv_head]
    scales = weights.scale * math.sqrt(heads.width) * gains

    def full_rows(tensor: Tensor, count: int, places: Tensor, columns: Tensor) -> Filled:
        full = torch.zeros(count, heads.width, *tensor.shape[2:])
        full[places[:, None], columns] = tensor.float().cpu()
        return Filled(full.flatten(0, 1), tensor.numel())

    def rows(tensor: Tensor | None, count: int, places: Tensor, columns: Tensor) -> Filled | None:
        return None if tensor is None else full_rows(tensor, count, places, columns)

    query, query_bias = weights.query.float().cpu() * scales[..., None], weights.query_bias
    query_bias = None if query_bias is None else query_bias.float().cpu() * scales
    all_queries = groups * group_size
    output, kept = full_rows(weights.output.movedim(0, -1), all_queries, queries, values)
    tensors = {
        "attn_q.weight": rows(query, all_queries, queries, channels[kv_head]),
        "attn_q.bias": rows(query_bias, all_queries, queries, channels[kv_head]),
        "attn_k.weight": rows(weights.key, groups, keys, channels),
        "attn_k.bias": rows(weights.key_bias, groups, keys, channels),
        "attn_v.weight": rows(weights.value, groups, keys, values),
        "attn_v.bias": rows(weights.value_bias, groups, keys, values),
        "attn_output.weight": Filled(output.T, kept),
        "attn_output.bias": None if weights.output_bias is None else _whole(weights.output_bias),
    }
    return {name: tensor for name, tensor in tensors.items() if tensor is not None}


def interleaved(frequency: Int[Tensor, "kv_heads pairs"], rotated: int) -> Int[Tensor, "kv_heads dim"]:
    """Where llama.cpp wants each channel of a head: pair j of the full head is its channels 2 j and 2 j + 1."""
    still = frequency == UNROTATED
    pairs = torch.where(still, rotated + still.cumsum(1) - 1, frequency)
    return torch.cat([2 * pairs, 2 * pairs + 1], dim=1)


def mlp_tensors(weights: MLPWeights) -> dict[str, Filled]:
    """Gate, up and down at a width of whole blocks; a neuron of zeros is silent.

    Of no neuron at all there is one block: deci forgets the attention of a layer whose width is 0.
    """
    neurons = len(weights.up)
    more = max(BLOCK, -(-neurons // BLOCK) * BLOCK) - neurons

    def rows(tensor: Tensor | None) -> Filled | None:
        if tensor is None:
            return None
        padding = (0, more) if tensor.ndim == 1 else (0, 0, 0, more)
        return Filled(functional.pad(tensor.float().cpu(), padding), tensor.numel())

    tensors = {
        "ffn_gate.weight": rows(weights.gate),
        "ffn_gate.bias": rows(weights.gate_bias),
        "ffn_up.weight": rows(weights.up),
        "ffn_up.bias": rows(weights.up_bias),
        "ffn_down.weight": Filled(functional.pad(weights.down.float().cpu(), (0, more)), weights.down.numel()),
        "ffn_down.bias": None if weights.down_bias is None else _whole(weights.down_bias),
    }
    return {name: tensor for name, tensor in tensors.items() if tensor is not None}


def _whole(tensor: Tensor) -> Filled:
    return Filled(tensor.detach().float().cpu(), tensor.numel())
