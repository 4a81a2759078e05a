"""What the Activations tab shows, as plain numbers: no tensors, no gradio."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Histogram:
    """How values are spread: densities of equal bins between `low` and `high`, and moments of all values."""

    low: float
    high: float
    density: Sequence[float]
    mean: float
    spread: float  # standard deviation
    kurtosis: float  # excess: 0 for a Gaussian


@dataclass(frozen=True)
class PlaceShift:
    """How far one method is from the dense model at one layer and place; medians over tokens.

    The massive ones are nan where no token is massive. `distance` is 1-Wasserstein, in dense spreads.
    """

    error: float
    massive_error: float
    cosine: float
    massive_cosine: float
    distance: float
    histogram: Histogram


@dataclass(frozen=True)
class MethodShift:
    """One method beside the dense model: by place ("residual", "attention", "mlp"), then by layer."""

    removed: float  # fraction of the layers' weights
    places: Mapping[str, Sequence[PlaceShift]]
    dense: Mapping[str, Sequence[Histogram]]


@dataclass(frozen=True)
class ShiftView:
    """Methods at equal removed parameters. `missing` says in words why one is not there, or not yet."""

    asked: float
    methods: Mapping[str, MethodShift]
    tokens: int
    window: int
    massive: int
    text: str  # what was measured on
    missing: str = ""
    order: str = "one-shot"  # of both methods
    snapshot: str = ""
