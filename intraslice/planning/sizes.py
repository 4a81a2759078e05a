"""Sizes of one layer, dense and planned, and parameter counts of smaller layers. Pure."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property


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

    @cached_property
    def channels(self) -> int:
        return self.heads * self.dim

    @cached_property
    def channel_cost(self) -> float:
        """Parameters per query-head channel when whole groups are removed."""
        kv_fraction = self.kv_heads / self.heads
        return 2 * self.hidden * (1 + kv_fraction) + self.attention_bias * (1 + 2 * kv_fraction)

    @cached_property
    def neuron_cost(self) -> int:
        return self.hidden * (2 + self.gated) + self.mlp_bias * (1 + self.gated)

    def parameters(self, heads: int, kv_heads: int, dim: int, neurons: int) -> int:
        """Parameters of this layer with these heads, whose values have width `dim`, and these neurons."""
        rows = self.query_dim(dim) * (heads + kv_heads) + dim * kv_heads
        attention = self.hidden * (rows + heads * dim) + self.attention_bias * rows
        return self.fixed + attention + neurons * self.neuron_cost

    def products(self, heads: int, kv_heads: int, dim: int, neurons: int, context: int) -> int:
        """Multiplications per token that attends to `context` tokens, with the sizes of `parameters`."""
        widths = self.query_dim(dim) + dim
        weights = self.hidden * (widths * (heads + kv_heads) + neurons * (2 + self.gated))
        return weights + heads * widths * context

    def query_dim(self, dim: int) -> int:
        """Width of queries and keys where values have width `dim`."""
        return self.dim if self.whole_queries else dim

    def cached_values(self, kv_heads: int, dim: int) -> int:
        """Values that one token adds to the key/value cache."""
        return kv_heads * (self.query_dim(dim) + dim)

    @cached_property
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


@dataclass(frozen=True)
class LayerPlan:
    """Ratios and sizes of one layer; `dim` is the width of the values where queries and keys are normalised."""

    attention_ratio: float  # removed fraction of the query-head channels, with the rounding of widths
    mlp_ratio: float
    heads: tuple[int, ...]
    kv_heads: int
    dim: int
    neurons: int

    def parameters(self, sizes: LayerSizes) -> int:
        """Parameters of the layer, whose dense sizes are `sizes`."""
        return sizes.parameters(len(self.heads), self.kv_heads, self.dim, self.neurons)


@dataclass(frozen=True)
class Reasons:
    """What determined the ratios: thresholds on the importances, and layers limited by the cap."""

    nominal_sparsity: float  # of the budget for which the actual sparsity meets the target
    bias: float  # configured or implied: removed fraction of neurons, before cap and locks, over nominal sparsity
    attention_threshold: float | None
    mlp_threshold: float | None
    capped_attention: tuple[int, ...]
    capped_mlp: tuple[int, ...]


MULTIPLE = 8  # neurons are removed in multiples of it, for fast kernels
BLOCK = 32  # values per block of quantised rows


def neurons_kept(neurons: int, ratio: float) -> int:
    """Width after removing `ratio` of the neurons, whose number is rounded down to a multiple of 8.

    At least min(8, `neurons`) are kept, unless the ratio is 1.
    """
    if ratio >= 1:
        return 0
    removed = int(neurons * ratio + 1e-6) // MULTIPLE * MULTIPLE
    return max(neurons - removed, min(MULTIPLE, neurons))


def aligned(width: float, dense: int, multiple: int) -> int:
    """The multiple nearest to a width, at least one; no width at all and the dense one stay."""
    return int(width) if width in (0, dense) else min(dense, max(multiple, round(width / multiple) * multiple))


def all_aligned(widths: Sequence[int], dense: Sequence[int], multiple: int) -> list[int]:
    """Widths of several layers as multiples. Each takes over what rounding the one before added, so the sum stays."""
    kept, excess = [], 0
    for width, whole in zip(widths, dense, strict=True):
        kept.append(aligned(width if width in (0, whole) else max(width - excess, 1), whole, multiple))
        excess += kept[-1] - width
    return kept


def block_widths(neurons: int) -> list[int]:
    """The dense width and all multiples of 32 below it, down to 0."""
    return [neurons, *range((neurons - 1) // BLOCK * BLOCK, -1, -BLOCK)]
