"""The choice and the data of a sweep, as plain numbers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple


class SweepChoice(NamedTuple):
    """The points of a sweep: sparsities in per cent; with `speed` the speed is measured too."""

    methods: Sequence[str] = ("intraslice", "crossmodule")
    estimators: Sequence[str] = ("pca", "uniform")
    sparsities: Sequence[float] = (10, 20, 30, 40)
    speed: bool = False


@dataclass(frozen=True)
class SweepPoint:
    """One model of a sweep. `estimator` is empty if the method uses none, `perplexity` None for an unreachable target.

    `target_sparsity` and `removed` are fractions of the layers' parameters; `prefill` and `decode` are speeds relative
    to dense; `divergence` is KL from the dense model in nats per token.
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


@dataclass(frozen=True)
class SweepView:
    """The measured points of a sweep, the number of all its points, and the protocols of the measurements."""

    dense: float | None
    points: tuple[SweepPoint, ...]
    total: int
    protocol: str
    speed_protocol: str = ""
