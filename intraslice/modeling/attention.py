"""The one attention module, dense or sliced: its own head counts, head widths and rotary pairs, and its forward.

It replaces `self_attn` of the transformers layer. Sizes are read off the tensors, never off a model config, so layers
of one model may differ: fewer heads, ragged query groups, narrower heads.
"""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional

from intraslice.layer_weights import UNROTATED, AttentionWeights
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
    """

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
        device = weights.query.device
        self.register_buffer("kv_head", weights.kv_head.to(device), persistent=False)
        self.register_buffer("frequency", weights.frequency.to(device), persistent=False)
        group = self.heads // self.kv_heads
        even = torch.arange(self.kv_heads, device="cpu").repeat_interleave(group)
        self.even_groups = torch.equal(weights.kv_head.cpu(), even)
        self.shared_frequencies = bool((weights.frequency == weights.frequency[:1]).all())
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

    def _angles(self, table: Tensor, unrotated: float) -> tuple[Tensor, Tensor]:
        """Each query's and key's column of a cosine or sine table (batch, tokens, 2 * frequencies)."""
        table = table[..., : table.shape[-1] // 2]
        if self.has_unrotated:  # index -1 reads the appended column
            table = functional.pad(table, (0, 1), value=unrotated)
        if self.shared_frequencies:
            shared = table[..., self.frequency[0]].unsqueeze(1)
            return shared, shared
        keys = table[..., self.frequency].transpose(1, 2)
        return keys[:, self.kv_head], keys

    def project(
        self, hidden: Float[Tensor, "batch tokens hidden"], position_embeddings: tuple[Tensor, Tensor]
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Rotated queries (batch, heads, tokens, dim), rotated keys and values (batch, kv_heads, tokens, ·)."""
        return self.split_and_rotate(self.qkv_proj(hidden), position_embeddings)

    def split_and_rotate(
        self, projected: Float[Tensor, "batch tokens rows"], position_embeddings: tuple[Tensor, Tensor]
    ) -> tuple[Tensor, Tensor, Tensor]:
        """What `project` returns, from what leaves `qkv_proj`."""
        sizes = [self.heads * self.dim, self.kv_heads * self.dim, self.kv_heads * self.value_dim]
        query, key, value = projected.split(sizes, dim=-1)
        query = query.unflatten(-1, (self.heads, self.dim)).transpose(1, 2)
        key = key.unflatten(-1, (self.kv_heads, self.dim)).transpose(1, 2)
        value = value.unflatten(-1, (self.kv_heads, self.value_dim)).transpose(1, 2)
        query_cos, key_cos = self._angles(position_embeddings[0], 1.0)
        query_sin, key_sin = self._angles(position_embeddings[1], 0.0)
        return rotate(query, query_cos, query_sin), rotate(key, key_cos, key_sin), value

    def attend(self, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None = None) -> Tensor:
        """Head outputs (batch, tokens, heads * value_dim), that is, what enters `o_proj`.

        Without a mask, several queries are causal and a single one sees everything, as in transformers.
        """
        if not self.even_groups:
            key, value = key[:, self.kv_head], value[:, self.kv_head]
        return attend(query, key, value, self.scale, attention_mask)

    def forward(
        self,
        hidden_states: Tensor,
        position_embeddings: tuple[Tensor, Tensor] | None = None,
        attention_mask: Tensor | None = None,
        cache=None,
        past_key_values=None,
        **_,
    ) -> tuple[Tensor, None]:
        """The attention output (batch, tokens, hidden), and None where transformers returns attention weights."""
        query, key, value = self.project(hidden_states, position_embeddings)
        cache = past_key_values if cache is None else cache  # transformers renames the keyword until 5.40
        if cache is not None:
            key, value = cache.update(key, value, self.layer_idx)
        return self.o_proj(self.attend(query, key, value, attention_mask)), None


def attend(query: Tensor, key: Tensor, value: Tensor, scale: float, attention_mask: Tensor | None = None) -> Tensor:
    """Scaled dot-product attention. Query heads are a multiple of the key/value heads, group by group.

    query (batch, heads, tokens, dim), key and value (batch, kv_heads, tokens', ·) -> (batch, tokens, heads * value_dim)
    """
    width, value_dim = query.shape[-1], value.shape[-1]
    if width != value_dim and query.shape[2] > 1:  # the fast CPU kernel wants one width for all three
        widest = max(width, value_dim)
        query, key = (functional.pad(states, (0, widest - width)) for states in (query, key))
        value = functional.pad(value, (0, widest - value_dim))
    head_outputs = functional.scaled_dot_product_attention(
        query,
        key,
        value,
        attn_mask=attention_mask,
        is_causal=attention_mask is None and query.shape[2] > 1,
        scale=scale,
        enable_gqa=query.shape[1] != key.shape[1],
    )
    return head_outputs[..., :value_dim].transpose(1, 2).flatten(2)
