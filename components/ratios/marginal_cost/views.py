"""What the marginal prices show, as plain numbers."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple


class ModulePrice(NamedTuple):
    """One module's price of a parameter, with its error and what each estimator foretold, over the median module's."""

    layer: int
    module: str
    ratio: float  # at the plan
    times: float
    error: float
    predicted: Mapping[str, float]


class Parting(NamedTuple):
    """A module that two plans of equal size treat differently: its ratio here and there."""

    layer: int
    module: str
    ratio: float
    other: float


@dataclass(frozen=True)
class Exchanged:
    """Parameters moved from one module to another, as a share of the layers', change KL by so much, nats a token."""

    giver: ModulePrice
    taker: ModulePrice
    share: float
    change: float
    error: float


@dataclass(frozen=True)
class OtherPlan:
    """Another estimator's plan of equal size: where it parts most, and what going over would change KL by."""

    estimator: str
    change: float
    error: float
    partings: tuple[Parting, ...]


@dataclass(frozen=True)
class PriceView:
    """Every module's price at one plan, whose own KL from the dense model is `divergence`, nats a token."""

    divergence: float
    modules: tuple[ModulePrice, ...]
    exchanged: Exchanged | None
    others: tuple[OtherPlan, ...]
    measured_on: str
