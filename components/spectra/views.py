"""The data that the Spectra tab shows, as plain numbers: no tensors, no gradio."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from ..state.views import HERE, Provenance

MAX_POINTS = 120  # of a curve; a screen does not resolve more


@dataclass(frozen=True)
class Curve:
    """Explained variance of a place: the first `ranks[i]` of its `size` principal axes explain `explained[i]` of it."""

    size: int
    ranks: Sequence[int]  # ascending, up to `size`
    explained: Sequence[float]
    effective_rank: int  # number of axes that explain 95 %

    def at(self, rank: int) -> float:
        """The fraction that the first `rank` axes explain, for a rank from 0 to `size`."""
        return float(np.interp(rank, [0, *self.ranks], [0.0, *self.explained]))


def curve_ranks(size: int) -> list[int]:
    """The ranks at which a curve over `size` axes is stored: all, or evenly spaced ones that include both ends."""
    points = min(size, MAX_POINTS)
    return [1 + round(index * (size - 1) / max(points - 1, 1)) for index in range(points)]


@dataclass(frozen=True)
class LayerCurves:
    """One layer's curves. The wide ones are None until they are computed, which can take seconds."""

    heads: tuple[Curve, ...]  # the input of o_proj, by query head
    groups: tuple[Curve, ...]  # the same by value head, all its query heads together, as slicing does
    mlp: Curve | None = None  # the input of down_proj
    residual: Curve | None = None  # the layer's input
    directions: Curve | None = None  # the same, with every token scaled to length 1


@dataclass(frozen=True)
class PairsView:
    """Rotary pairs of one layer, fastest first: their energy and whether they are kept, one row per key head."""

    energy: Sequence[Sequence[float]]
    kept: Sequence[Sequence[bool]]
    angles: Sequence[float]  # rotation of a pair per token, in radians
    unrotated: tuple[int, int] = (0, 0)  # channels without rotation: kept, all


@dataclass(frozen=True)
class SpectraView:
    """One layer's spectra, the parts that the current setting keeps, and the ranks of all layers.

    `ranks[layer][head]` is the number of the `dim` axes that explain 95 % of the head's output; `heads[layer]` are the
    kept heads, each with `dims[layer]` channels. `width` is the number of residual axes that the cross-module method
    keeps at equal parameters, None if it cannot reach the sparsity.
    """

    layer: int
    curves: LayerCurves
    pairs: PairsView
    dim: int
    ranks: Sequence[Sequence[int]]
    heads: Sequence[Sequence[int]]
    dims: Sequence[int]
    neurons: int  # kept in this layer
    width: int | None
    source: Provenance = HERE
