"""What the Activations tab shows, as plain numbers: no tensors, no gradio."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from ..state.views import HERE, Provenance


@dataclass(frozen=True)
class Histogram:
    """A distribution: densities of equal bins between `low` and `high`, and moments of all values."""

    low: float
    high: float
    density: Sequence[float]
    mean: float
    spread: float  # standard deviation
    kurtosis: float  # excess: 0 for a Gaussian


@dataclass(frozen=True)
class PlaceShift:
    """The distance of one method from the dense model at one layer and place; medians over tokens.

    The massive values are nan if no token is massive. `distance` is 1-Wasserstein, in dense standard deviations.
    """

    error: float
    massive_error: float
    cosine: float
    massive_cosine: float
    distance: float
    histogram: Histogram


@dataclass(frozen=True)
class MethodShift:
    """One method's shifts, and the dense distributions, by place ("residual", "attention", "mlp"), then by layer."""

    removed: float  # fraction of the layer parameters
    places: Mapping[str, Sequence[PlaceShift]]
    dense: Mapping[str, Sequence[Histogram]]


@dataclass(frozen=True)
class ShiftView:
    """All methods at equal removed parameters. `missing` explains why a method is absent."""

    target_sparsity: float
    methods: Mapping[str, MethodShift]
    tokens: int
    window: int
    massive: int
    text: str  # what was measured on
    missing: str = ""
    order: str = "one-shot"  # of both methods
    source: Provenance = HERE
