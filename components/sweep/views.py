"""The choice and the data of a sweep, as plain numbers."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import NamedTuple


class SweepChoice(NamedTuple):
    """The points of a sweep, and whether `speed` is measured. Types to `quantise` weights to may include "none"."""

    methods: list[str] = ["intraslice", "crossmodule"]  # noqa: RUF012  gradio shows programs the type of a list
    estimators: list[str] = ["pca", "uniform"]  # noqa: RUF012
    sparsities: list[float] = [10, 20, 30, 40]  # noqa: RUF012  per cent
    speed: bool = False
    quantise: list[str] = ["none"]  # noqa: RUF012


@dataclass(frozen=True)
class SweepPoint:
    """One model of a sweep. `estimator` is empty if the method uses none, `perplexity` None for an unreachable target.

    `target_sparsity` and `removed` are fractions of the layers' parameters; `prefill` and `decode` are speeds relative
    to dense; `divergence` is KL from the dense model in nats per token. The method "dense" is not sliced. `quantise` is
    the type that the weights are rounded to, `bytes` the size on disk.
    """

    method: str
    estimator: str
    target_sparsity: float
    removed: float | None
    parameters: int | None
    perplexity: float | None
    prefill: float | None = None
    decode: float | None = None
    note: str = ""
    divergence: float | None = None
    quantise: str = "none"
    bytes: int | None = None


@dataclass(frozen=True)
class SweepView:
    """The measured points of a sweep, the number of all its points, and the protocols of the measurements."""

    dense: float | None
    points: tuple[SweepPoint, ...]
    total: int
    protocol: str
    speed_protocol: str = ""


def frontier(points: Sequence[SweepPoint], value: Callable[[SweepPoint], float | None]) -> list[SweepPoint]:
    """The points that no other point of at most their size equals or betters in `value`, by increasing size."""
    sized = [
        (point.bytes, measure, index)
        for index, point in enumerate(points)
        if point.bytes is not None and (measure := value(point)) is not None
    ]
    sized.sort()
    lowest = accumulate((measure for _, measure, _ in sized), min, initial=math.inf)
    return [points[index] for (_, measure, index), before in zip(sized, lowest, strict=False) if measure < before]
