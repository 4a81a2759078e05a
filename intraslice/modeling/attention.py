"""The attention module, dense or sliced, with its own head counts, head widths and rotary pairs.

It replaces `self_attn` of the transformers layer. Its sizes come from the tensors, never from a model config, so layers
of one model may differ: fewer heads, ragged query groups, narrower heads.
"""

from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional
from transformers import Cache

from intraslice.core.weights import UNROTATED, AttentionWeights, HeadNorms
from intraslice.modeling.surgery import concatenated, frozen_linear


def rotate(
    states: Float[Tensor, "batch heads tokens dim"],
    cos: Float[Tensor, "#batch #heads tokens pairs"],
    sin: Float[Tensor, "#batch #heads tokens pairs"],
) -> Float[Tensor, "batch heads tokens dim"]:
    """Rotate each channel pair by the angle of its position (rotary embedding)."""
    first, second = states.chunk(2, dim=-1)
    return torch.cat((first * cos - second * sin, second * cos + first * sin), dim=-1)


class NormedHeads(nn.Module):
    """The RMS norms of queries and keys of some families; see `HeadNorms`."""

    def __init__(self, norms: HeadNorms) -> None:
        super().__init__()
        self.query, self.key = (nn.Parameter(weight, requires_grad=False) for weight in (norms.query, norms.key))
        self.epsilon, self.offset = norms.epsilon, norms.offset

    def weights(self) -> HeadNorms:
        """The canonical weights."""
        return HeadNorms(self.query, self.key, self.epsilon, self.offset)

    def forward(
        self, states: Float[Tensor, "batch heads tokens dim"], heads: int
    ) -> Float[Tensor, "batch heads tokens dim"]:
        """Normalise the first `heads` heads, which are queries, and the others, which are keys."""
        counts = (heads, states.shape[1] - heads)
        rows = [weight.expand(count, 1, -1) for weight, count in zip((self.query, self.key), counts, strict=True)]
        normed = functional.rms_norm(states.float(), states.shape[-1:], eps=self.epsilon)
        return (normed * (self.offset + torch.cat(rows).float())).to(states.dtype)


class SlicedAttention(nn.Module):
    """Grouped-query attention with its own head counts, head widths and rotary pairs.

    Replaces `self_attn` of a transformers decoder layer and has the same signature. Value width and query/key width may
    differ. Without heads the output is the output bias.
    """

    # Buffers; see `_layout`.
    kv_head: Tensor
    frequency: Tensor
    group_heads: Tensor
    head_positions: Tensor
    rotary_columns: Tensor

    def __init__(self, weights: AttentionWeights, layer_idx: int) -> None:
        super().__init__()
        self.layer_idx = layer_idx
        self.heads, self.dim, _ = weights.query.shape
        self.kv_heads, self.value_dim, _ = weights.value.shape
        self.scale = weights.scale
        self.qkv_proj = frozen_linear(
            torch.cat([w.flatten(0, 1) for w in (weights.query, weights.key, weights.value)]),
            concatenated(
                [b if b is None else b.flatten() for b in (weights.query_bias, weights.key_bias, weights.value_bias)]
            ),
        )
        self.o_proj = frozen_linear(weights.output.flatten(1), weights.output_bias)
        self.norms = None if weights.norms is None else NormedHeads(weights.norms)
        layout = _layout(weights.kv_head.cpu(), weights.frequency.cpu())
        for name, index in layout.items():
            self.register_buffer(name, index.to(weights.query.device), persistent=False)
        even = torch.arange(self.kv_heads, device="cpu").repeat_interleave(self.heads // max(1, self.kv_heads))
        self.even_groups = torch.equal(layout["kv_head"], even)
        self.unrotated = max((weights.frequency == UNROTATED).sum(1).tolist(), default=0)  # pairs, of any head the most

    def weights(self) -> AttentionWeights:
        """The canonical weights, as views of this module's parameters."""
        sizes = [self.heads * self.dim, self.kv_heads * self.dim, self.kv_heads * self.value_dim]
        query, key, value = self.qkv_proj.weight.split(sizes)
        bias = self.qkv_proj.bias
        query_bias, key_bias, value_bias = (None, None, None) if bias is None else bias.split(sizes)
        return AttentionWeights(
            query=query.unflatten(0, (self.heads, self.dim)),
            key=key.unflatten(0, (self.kv_heads, self.dim)),
            value=value.unflatten(0, (self.kv_heads, self.value_dim)),
            output=self.o_proj.weight.unflatten(1, (self.heads, self.value_dim)),
            query_bias=None if bias is None else query_bias.unflatten(0, (self.heads, self.dim)),
            key_bias=None if bias is None else key_bias.unflatten(0, (self.kv_heads, self.dim)),
            value_bias=None if bias is None else value_bias.unflatten(0, (self.kv_heads, self.value_dim)),
            output_bias=self.o_proj.bias,
            kv_head=self.kv_head,
            frequency=self.frequency,
            scale=self.scale,
            norms=None if self.norms is None else self.norms.weights(),
        )

    def fill_layout_(self, kv_head: Int[Tensor, " heads"], frequency: Int[Tensor, "kv_heads pairs"]) -> None:
        """Fill the layout buffers, in place, of a module that was built on the meta device."""
        for name, index in _layout(kv_head, frequency).items():
            getattr(self, name).copy_(index)

    def _angles(self, table: Tensor, unrotated: float) -> Tensor:
        """Select the columns of each query and key head from a cosine or sine table (batch, tokens, channels)."""
        table = table[..., : table.shape[-1] // 2]
        if self.unrotated:
            table = functional.pad(table, (1, 0), value=unrotated)
        # index_select takes a tenth to half of the time of indexing
        columns = self.rotary_columns
        return table.index_select(-1, columns.flatten()).unflatten(-1, columns.shape).transpose(1, 2)

    def project(
        self, hidden: Float[Tensor, "batch tokens hidden"], position_embeddings: tuple[Tensor, Tensor]
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Queries (batch, heads, tokens, dim), keys and values (batch, kv_heads, tokens, ·), normalised and rotated."""
        return self.split_and_rotate(self.qkv_proj(hidden), position_embeddings)

    def split_and_rotate(
        self, projected: Float[Tensor, "batch tokens rows"], position_embeddings: tuple[Tensor, Tensor]
    ) -> tuple[Tensor, Tensor, Tensor]:
        """The result of `project`, computed from the output of `qkv_proj`."""
        rotated_heads = self.heads + self.kv_heads
        states, value = projected.split([rotated_heads * self.dim, self.kv_heads * self.value_dim], dim=-1)
        states = states.unflatten(-1, (rotated_heads, self.dim)).transpose(1, 2)
        value = value.unflatten(-1, (self.kv_heads, self.value_dim)).transpose(1, 2)
        if self.norms is not None:
            states = self.norms(states, self.heads)
        cos, sin = position_embeddings
        rotated = rotate(states, self._angles(cos, 1.0), self._angles(sin, 0.0))
        return rotated[:, : self.heads], rotated[:, self.heads :], value

    def attend(self, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None = None) -> Tensor:
        """Head outputs (batch, tokens, heads * value_dim), the input of `o_proj`.

        Without a mask, several queries attend causally and a single query attends to every token, as in transformers.
        """
        if not self.heads:
            return query.transpose(1, 2).flatten(2)
        if query.shape[2] == 1:  # the queries of a group attend together, so that the cache is never copied
            heads = functional.pad(query[:, :, 0], (0, 0, 0, 1)).index_select(1, self.group_heads.flatten())
            groups = heads.unflatten(1, self.group_heads.shape)
            outputs = attend(groups, key, value, self.scale, attention_mask, causal=False)
            return outputs.flatten(1, 2).index_select(1, self.head_positions).flatten(1).unsqueeze(1)
        if not self.even_groups:
            key, value = (states.index_select(1, self.kv_head) for states in (key, value))
        return attend(query, key, value, self.scale, attention_mask).transpose(1, 2).flatten(2)

    def forward(
        self,
        hidden_states: Tensor,
        position_embeddings: tuple[Tensor, Tensor],
        attention_mask: Tensor | None = None,
        cache: Cache | None = None,
        past_key_values: Cache | None = None,
        **_: Any,
    ) -> tuple[Tensor, None]:
        """The attention output (batch, tokens, hidden), and None where transformers returns attention weights."""
        query, key, value = self.project(hidden_states, position_embeddings)
        cache = past_key_values if cache is None else cache  # transformers renames the keyword until 5.40
        if cache is not None and self.heads:
            key, value = cache.update(key, value, self.layer_idx)
        elif cache is not None:  # transformers takes the number of cached tokens from the first layer
            token = key.new_ones(len(key), 1, key.shape[2], 1)
            cache.update(token, token, self.layer_idx)
        return self.o_proj(self.attend(query, key, value, attention_mask)), None


def attend(
    query: Tensor, key: Tensor, value: Tensor, scale: float, mask: Tensor | None = None, causal: bool = True
) -> Float[Tensor, "batch heads tokens value_dim"]:
    """Scaled dot-product attention, `causal` unless there is a mask.

    query (batch, heads, tokens, dim), key and value (batch, kv_heads, tokens', ·); the number of heads is a multiple of
    the number of kv_heads.
    """
    width, value_dim = query.shape[-1], value.shape[-1]
    if width != value_dim:  # the fast CPU kernel requires the same width for all three
        widest = max(width, value_dim)
        query, key = (functional.pad(states, (0, widest - width)) for states in (query, key))
        value = functional.pad(value, (0, widest - value_dim))
    is_causal, is_grouped = causal and mask is None, query.shape[1] != key.shape[1]
    head_outputs = functional.scaled_dot_product_attention(
        query, key, value, attn_mask=mask, is_causal=is_causal, scale=scale, enable_gqa=is_grouped
    )
    return head_outputs[..., :value_dim]


def _layout(kv_head: Int[Tensor, " heads"], frequency: Int[Tensor, "kv_heads pairs"]) -> dict[str, Tensor]:
    """The layout buffers of the module, on the CPU: the two arguments, and three that are derived from them.

    group_heads: (kv_heads, largest group) query heads of every group, padded with the number of heads.
    head_positions: (heads,) position of each head in the flattened `group_heads`.
    rotary_columns: (heads + kv_heads, pairs) frequencies of queries and keys, or (1, pairs) where all are the same.
        Where some pairs are unrotated, these are 0 and all frequencies are shifted by 1.
    """
    groups = [(kv_head == group).nonzero().flatten() for group in range(len(frequency))]
    group_heads = nn.utils.rnn.pad_sequence(groups or [kv_head], batch_first=True, padding_value=len(kv_head))
    shared = bool((frequency == frequency[:1]).all())
    rotary_columns = frequency[:1] if shared else torch.cat((frequency[kv_head], frequency))
    if (frequency == UNROTATED).any():
        rotary_columns = rotary_columns - UNROTATED
    return {
        "kv_head": kv_head,
        "frequency": frequency,
        "group_heads": group_heads,
        "head_positions": group_heads.flatten().argsort(stable=True)[: len(kv_head)],
        "rotary_columns": rotary_columns,
    }
