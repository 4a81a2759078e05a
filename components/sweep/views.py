"""What a sweep is asked and what it shows, as plain numbers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple


class SweepChoice(NamedTuple):
    """Which points a sweep has: sparsities in per cent; `speed` asks for measured speed as well."""

    methods: Sequence[str] = ("intraslice", "crossmodule")
    estimators: Sequence[str] = ("pca", "uniform")
    sparsities: Sequence[float] = (10, 20, 30, 40)
    speed: bool = False


@dataclass(frozen=True)
class SweepPoint:
    """One model of a sweep. `estimator` is empty where the method uses none, `perplexity` None where out of reach.

    `divergence` is KL from the dense model, in nats a token.
    `asked` and `removed` are fractions of the layers' parameters; `prefill` and `decode` are speeds, in times dense.
    """

    method: str
    estimator: str
    asked: float
    removed: float | None
    parameters: int | None
    perplexity: float | None
    prefill: float | None = None
    decode: float | None = None
    note: str = ""
    divergence: float | None = None


@dataclass(frozen=True)
class SweepView:
    """The points of a sweep that are there, of how many, and what they were measured on."""

    dense: float | None
    points: tuple[SweepPoint, ...]
    wanted: int
    protocol: str
    speed_protocol: str = ""
