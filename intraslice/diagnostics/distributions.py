"""Streaming statistics of distributions: mean, standard deviation, kurtosis, histogram and a distance. Pure."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy
import torch
from jaxtyping import Float
from torch import Tensor

BINS = 120
TAIL = 0.001  # fraction of the first values below the lowest edge, and above the highest
SAMPLE = 1_000_000


@dataclass(frozen=True)
class Distribution:
    """Statistics of a set of values. The end bins include values outside the edges, so the density integrates to 1."""

    mean: float
    spread: float  # standard deviation
    kurtosis: float  # excess: 0 for a Gaussian
    edges: Float[Tensor, " edges"]
    density: Float[Tensor, " bins"]


def histogram_edges(values: Float[Tensor, "*any"], bins: int = BINS) -> Float[Tensor, " edges"]:
    """Equal bins between outer quantiles of the values: with a few outliers, most values would share one bin."""
    sample = values.flatten()
    sample = sample[:: max(1, len(sample) // SAMPLE)].double().cpu()
    low, high = numpy.quantile(sample.numpy(), [TAIL, 1 - TAIL]).tolist()  # torch's sorts all values: four times slower
    if not high > low:  # all values are equal
        low, high = low - 0.5, high + 0.5
    return torch.linspace(low, high, bins + 1, dtype=torch.float64)


@dataclass
class Moments:
    """Power sums and bin counts of the values seen so far, centred on the first values' mean to avoid cancellation."""

    count: int = 0
    origin: float = 0.0
    sums: Float[Tensor, " powers"] = field(default_factory=lambda: torch.zeros(4, dtype=torch.float64))
    bins: Float[Tensor, " bins"] | None = None

    def add(self, values: Float[Tensor, "*any"], edges: Float[Tensor, " edges"]) -> None:
        """Add values; the edges must be the same every time."""
        if not values.numel():
            return
        low, high = edges[0].item(), edges[-1].item()
        counts = values.float().clamp(low, high).histc(len(edges) - 1, low, high).double().cpu()
        self.bins = counts if self.bins is None else self.bins + counts
        if self.count == 0:
            self.origin = values.mean(dtype=torch.float64).item()
        centred = values.flatten().double() - self.origin
        square = centred.square()
        powers = (centred.sum(), centred @ centred, square @ centred, square @ square)
        self.sums += torch.stack(powers).cpu()
        self.count += values.numel()

    def distribution(self, edges: Float[Tensor, " edges"]) -> Distribution:
        """Statistics of the values seen so far. Without any, NaN and a histogram of zeros."""
        if self.bins is None:
            nan = float("nan")
            return Distribution(nan, nan, nan, edges, torch.zeros(len(edges) - 1, dtype=torch.float64))
        first, second, third, fourth = (self.sums / self.count).tolist()
        variance = max(second - first**2, 0.0)
        fourth_central = fourth - 4 * first * third + 6 * first**2 * second - 3 * first**4
        kurtosis = fourth_central / variance**2 - 3 if variance > 0 else 0.0
        density = self.bins / (self.bins.sum() * (edges[1] - edges[0]))
        return Distribution(self.origin + first, variance**0.5, kurtosis, edges, density)


def distance(first: Distribution, second: Distribution) -> float:
    """1-Wasserstein distance of two histograms on the same edges: the area between their cumulative distributions.

    In the unit of the values. Values outside the edges count in the end bins, so this is at most the distance of the
    values themselves.
    """
    step = first.edges[1] - first.edges[0]
    return ((first.density - second.density).cumsum(0).abs().sum() * step * step).item()
