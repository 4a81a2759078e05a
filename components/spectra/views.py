"""What the Spectra tab shows, as plain numbers: no tensors, no gradio."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

DRAWN = 120  # points of a curve; more cannot be told apart on a screen


@dataclass(frozen=True)
class Curve:
    """Explained variance of one place: `shares[i]` of it lies on the first `ranks[i]` of its `size` principal axes.

    `enough` is how many axes hold 95 %. Ranks ascend and end at `size`; between them the curve is read off a line.
    """

    size: int
    ranks: Sequence[int]
    shares: Sequence[float]
    enough: int

    def at(self, rank: int) -> float:
        """The share that the first `rank` axes hold, for a rank from 0 to `size`."""
        after = bisect_left(self.ranks, rank)
        before_rank, before = (self.ranks[after - 1], self.shares[after - 1]) if after else (0, 0.0)
        step = (rank - before_rank) / (self.ranks[after] - before_rank)
        return before + step * (self.shares[after] - before)


def drawn_ranks(size: int) -> list[int]:
    """The ranks at which a curve over `size` axes is kept: all, or evenly spaced ones with both ends."""
    points = min(size, DRAWN)
    return [1 + round(index * (size - 1) / max(points - 1, 1)) for index in range(points)]


@dataclass(frozen=True)
class LayerCurves:
    """One layer's curves. The wide ones are None until they are found, which can take seconds."""

    heads: tuple[Curve, ...]  # what enters o_proj, a query head each
    groups: tuple[Curve, ...]  # the same, all heads of a value head together: the basis that slicing keeps
    mlp: Curve | None = None  # what enters down_proj
    residual: Curve | None = None  # the layer's input
    directions: Curve | None = None  # the same, every token scaled to length 1


class KeptChannels(Protocol):
    """What of a layer's plan decides about its rotary pairs."""

    @property
    def heads(self) -> Sequence[int]: ...

    @property
    def dim(self) -> int: ...


@dataclass(frozen=True)
class PairsView:
    """Rotary pairs of one layer, fastest first: energy and survival, a row each key head.

    `angles` is what a pair turns by a token, in radians. Channels that do not rotate are counted as (kept, all).
    """

    energy: Sequence[Sequence[float]]
    kept: Sequence[Sequence[bool]]
    angles: Sequence[float]
    unrotated: tuple[int, int] = (0, 0)


@dataclass(frozen=True)
class SpectraView:
    """One layer's spectra with what the current setting keeps of them, and all layers' ranks.

    `ranks[layer][head]` is how many of the `dim` axes hold 95 % of the head's output; `heads[layer]` are the heads that
    stay, each with `dims[layer]` channels. `width` is how many residual axes the cross-module method would keep for the
    same parameters, None where it cannot remove as many.
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
    snapshot: str = ""  # what the numbers were measured on, when not now and here
