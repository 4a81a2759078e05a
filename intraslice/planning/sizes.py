"""Sizes of one layer, and what any smaller one costs. Pure."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class LayerSizes:
    """Sizes of one dense layer, and from them what any smaller one costs."""

    hidden: int
    heads: int
    kv_heads: int
    dim: int
    neurons: int
    gated: bool
    attention_bias: bool  # on queries, keys and values
    mlp_bias: bool
    fixed: int  # parameters that slicing leaves alone: norms and output biases

    @property
    def channels(self) -> int:
        return self.heads * self.dim

    @property
    def channel_cost(self) -> float:
        """Parameters of one query-head channel when whole groups go."""
        share = self.kv_heads / self.heads
        return 2 * self.hidden * (1 + share) + self.attention_bias * (1 + 2 * share)

    @property
    def neuron_cost(self) -> int:
        return self.hidden * (2 + self.gated) + self.mlp_bias * (1 + self.gated)

    def parameters(self, heads: int, kv_heads: int, dim: int, neurons: int) -> int:
        """Parameters of this layer at the given sizes."""
        rows = dim * (heads + 2 * kv_heads)
        attention = self.hidden * (rows + heads * dim) + self.attention_bias * rows
        return self.fixed + attention + neurons * self.neuron_cost

    @property
    def dense_parameters(self) -> int:
        return self.parameters(self.heads, self.kv_heads, self.dim, self.neurons)


@dataclass(frozen=True)
class Parameters:
    """Parameter counts; `decoder` are the decoder layers alone, which is what sparsity refers to."""

    dense_total: int
    sliced_total: int
    dense_decoder: int
    sliced_decoder: int

    @property
    def removed_fraction(self) -> float:
        return 1 - self.sliced_decoder / self.dense_decoder
