"""The one attention module, dense or sliced: its own head counts, head widths and rotary pairs, and its forward.

It replaces `self_attn` of the transformers layer. Sizes are read off the tensors, never off a model config, so layers
of one model may differ: fewer heads, ragged query groups, narrower heads.
"""

from __future__ import annotations

from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional
from transformers import Cache

from intraslice.core.weights import UNROTATED, AttentionWeights
from intraslice.modeling.linear import frozen_linear, joined


def rotate(
    states: Float[Tensor, "batch heads tokens dim"],
    cos: Float[Tensor, "#batch #heads tokens pairs"],
    sin: Float[Tensor, "#batch #heads tokens pairs"],
) -> Float[Tensor, "batch heads tokens dim"]:
    """Turn each channel pair by its position's angle (rotary embedding)."""
    first, second = states.chunk(2, dim=-1)
    return torch.cat((first * cos - second * sin, second * cos + first * sin), dim=-1)


class SlicedAttention(nn.Module):
    """Grouped-query attention whose head counts, head widths and rotary pairs are its own.

    Replaces `self_attn` of a transformers decoder layer and takes the same call. Value and query/key widths may differ.
    Without any head its output bias is all that is left.
    """

    # Buffers, as `_layout` has them.
    kv_head: Tensor
    frequency: Tensor
    slots: Tensor
    places: Tensor
    turned: Tensor

    def __init__(self, weights: AttentionWeights, layer_idx: int) -> None:
        super().__init__()
        self.layer_idx = layer_idx
        self.heads, self.dim, _ = weights.query.shape
        self.kv_heads, self.value_dim, _ = weights.value.shape
        self.scale = weights.scale
        self.qkv_proj = frozen_linear(
            torch.cat([w.flatten(0, 1) for w in (weights.query, weights.key, weights.value)]),
            joined(
                [b if b is None else b.flatten() for b in (weights.query_bias, weights.key_bias, weights.value_bias)]
            ),
        )
        self.o_proj = frozen_linear(weights.output.flatten(1), weights.output_bias)
        layout = _layout(weights.kv_head.cpu(), weights.frequency.cpu())
        for name, index in layout.items():
            self.register_buffer(name, index.to(weights.query.device), persistent=False)
        even = torch.arange(self.kv_heads, device="cpu").repeat_interleave(self.heads // max(1, self.kv_heads))
        self.even_groups = torch.equal(layout["kv_head"], even)
        self.has_unrotated = bool((weights.frequency == UNROTATED).any())

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
        )

    def fill_layout_(self, kv_head: Int[Tensor, " heads"], frequency: Int[Tensor, "kv_heads pairs"]) -> None:
        """Write which key/value head and rotary pairs belong to whom into a module made without memory, in place."""
        for name, index in _layout(kv_head, frequency).items():
            getattr(self, name).copy_(index)

    def _angles(self, table: Tensor, unrotated: float) -> Tensor:
        """Every query's and key's columns, or those all share, of a cosine or sine table (batch, tokens, channels)."""
        table = table[..., : table.shape[-1] // 2]
        if self.has_unrotated:
            table = functional.pad(table, (1, 0), value=unrotated)
        # index_select takes a tenth to half of the time of indexing
        return table.index_select(-1, self.turned.flatten()).unflatten(-1, self.turned.shape).transpose(1, 2)

    def project(
        self, hidden: Float[Tensor, "batch tokens hidden"], position_embeddings: tuple[Tensor, Tensor]
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Rotated queries (batch, heads, tokens, dim), rotated keys and values (batch, kv_heads, tokens, ·)."""
        return self.split_and_rotate(self.qkv_proj(hidden), position_embeddings)

    def split_and_rotate(
        self, projected: Float[Tensor, "batch tokens rows"], position_embeddings: tuple[Tensor, Tensor]
    ) -> tuple[Tensor, Tensor, Tensor]:
        """What `project` returns, from what leaves `qkv_proj`."""
        turning = self.heads + self.kv_heads
        states, value = projected.split([turning * self.dim, self.kv_heads * self.value_dim], dim=-1)
        states = states.unflatten(-1, (turning, self.dim)).transpose(1, 2)
        value = value.unflatten(-1, (self.kv_heads, self.value_dim)).transpose(1, 2)
        cos, sin = position_embeddings
        turned = rotate(states, self._angles(cos, 1.0), self._angles(sin, 0.0))
        return turned[:, : self.heads], turned[:, self.heads :], value

    def attend(self, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None = None) -> Tensor:
        """Head outputs (batch, tokens, heads * value_dim), that is, what enters `o_proj`.

        Without a mask, several queries are causal and a single one sees everything, as in transformers.
        """
        if not self.heads:
            return query.transpose(1, 2).flatten(2)
        if query.shape[2] == 1:  # a group reads its key/value head together, so that the cache is never copied
            heads = functional.pad(query[:, :, 0], (0, 0, 0, 1)).index_select(1, self.slots.flatten())
            groups = heads.unflatten(1, self.slots.shape)
            outputs = _attend(groups, key, value, self.scale, attention_mask, causal=False)
            return outputs.flatten(1, 2).index_select(1, self.places).flatten(1).unsqueeze(1)
        if not self.even_groups:
            key, value = (states.index_select(1, self.kv_head) for states in (key, value))
        return attend(query, key, value, self.scale, attention_mask)

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
        elif cache is not None:  # transformers counts tokens by what the first layer has kept
            token = key.new_ones(len(key), 1, key.shape[2], 1)
            cache.update(token, token, self.layer_idx)
        return self.o_proj(self.attend(query, key, value, attention_mask)), None


def attend(query: Tensor, key: Tensor, value: Tensor, scale: float, attention_mask: Tensor | None = None) -> Tensor:
    """Scaled dot-product attention. Query heads are a multiple of the key/value heads, group by group.

    query (batch, heads, tokens, dim), key and value (batch, kv_heads, tokens', ·) -> (batch, tokens, heads * value_dim)
    """
    causal = attention_mask is None and query.shape[2] > 1
    return _attend(query, key, value, scale, attention_mask, causal).transpose(1, 2).flatten(2)


def _attend(
    query: Tensor, key: Tensor, value: Tensor, scale: float, attention_mask: Tensor | None, causal: bool
) -> Float[Tensor, "batch heads tokens value_dim"]:
    width, value_dim = query.shape[-1], value.shape[-1]
    if width != value_dim:  # the fast CPU kernel wants one width for all three
        widest = max(width, value_dim)
        query, key = (functional.pad(states, (0, widest - width)) for states in (query, key))
        value = functional.pad(value, (0, widest - value_dim))
    head_outputs = functional.scaled_dot_product_attention(
        query,
        key,
        value,
        attn_mask=attention_mask,
        is_causal=causal,
        scale=scale,
        enable_gqa=query.shape[1] != key.shape[1],
    )
    return head_outputs[..., :value_dim]


def _layout(kv_head: Int[Tensor, " heads"], frequency: Int[Tensor, "kv_heads pairs"]) -> dict[str, Tensor]:
    """The two, and what follows from them, on the CPU.

    slots: (kv_heads, largest) query heads of every group, filled up with the number of heads.
    places: (heads,) where among those each head stands.
    turned: (heads + kv_heads, pairs) frequencies of queries and keys, or (1, pairs) where they have the same; counted
        from 1 where some are unrotated, which is 0 then.
    """
    groups = [(kv_head == group).nonzero().flatten() for group in range(len(frequency))]
    slots = nn.utils.rnn.pad_sequence(groups or [kv_head], batch_first=True, padding_value=len(kv_head))
    places = slots.flatten().argsort(stable=True)[: len(kv_head)]
    shared = bool((frequency == frequency[:1]).all())
    turned = frequency[:1] if shared else torch.cat((frequency[kv_head], frequency))
    if (frequency == UNROTATED).any():
        turned = turned - UNROTATED
    return {"kv_head": kv_head, "frequency": frequency, "slots": slots, "places": places, "turned": turned}
