"""Sizes of one layer, and the parameter counts of smaller ones. Pure."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class LayerSizes:
    """Sizes of one dense layer, and the parameter counts of smaller ones."""

    hidden: int
    heads: int
    kv_heads: int
    dim: int
    neurons: int
    gated: bool
    attention_bias: bool  # on queries, keys and values
    mlp_bias: bool
    fixed: int  # parameters that slicing does not change: norms and output biases
    whole_queries: bool = False  # queries and keys keep their width, and only values are narrowed

    @property
    def channels(self) -> int:
        return self.heads * self.dim

    @property
    def channel_cost(self) -> float:
        """Parameters per query-head channel when whole groups are removed."""
        kv_fraction = self.kv_heads / self.heads
        return 2 * self.hidden * (1 + kv_fraction) + self.attention_bias * (1 + 2 * kv_fraction)

    @property
    def neuron_cost(self) -> int:
        return self.hidden * (2 + self.gated) + self.mlp_bias * (1 + self.gated)

    def parameters(self, heads: int, kv_heads: int, dim: int, neurons: int) -> int:
        """Parameters of this layer with these heads, whose values have width `dim`, and these neurons."""
        rows = self.query_dim(dim) * (heads + kv_heads) + dim * kv_heads
        attention = self.hidden * (rows + heads * dim) + self.attention_bias * rows
        return self.fixed + attention + neurons * self.neuron_cost

    def query_dim(self, dim: int) -> int:
        """Width of queries and keys where values have width `dim`."""
        return self.dim if self.whole_queries else dim

    def cached_values(self, kv_heads: int, dim: int) -> int:
        """Values that one token adds to the key/value cache."""
        return kv_heads * (self.query_dim(dim) + dim)

    @property
    def dense_parameters(self) -> int:
        return self.parameters(self.heads, self.kv_heads, self.dim, self.neurons)


@dataclass(frozen=True)
class Parameters:
    """Parameter counts. Sparsity refers to the decoder layers alone (`decoder`)."""

    dense_total: int
    sliced_total: int
    dense_decoder: int
    sliced_decoder: int

    @property
    def removed_fraction(self) -> float:
        return 1 - self.sliced_decoder / self.dense_decoder
