"""The data of the marginal cost section, as plain numbers."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple


class ModuleCost(NamedTuple):
    """The marginal cost per parameter of one module, in multiples of the median module's: measured and predicted."""

    layer: int
    module: str
    ratio: float  # in the plan
    cost: float
    error: float  # standard error of `cost`
    predicted: Mapping[str, float]  # by estimator


class RatioDifference(NamedTuple):
    """A module's pruning ratio in this plan, and in another plan of equal size."""

    layer: int
    module: str
    ratio: float
    other_ratio: float


@dataclass(frozen=True)
class Swap:
    """Pruning `source` more and `target` less by `fraction` of the layers' parameters changes KL by `change`.

    KL is in nats per token.
    """

    source: ModuleCost
    target: ModuleCost
    fraction: float
    change: float
    error: float


@dataclass(frozen=True)
class OtherPlan:
    """Another estimator's plan of equal size: its largest differences, and the change of KL if it were adopted."""

    estimator: str
    change: float
    error: float
    differences: tuple[RatioDifference, ...]


@dataclass(frozen=True)
class MarginalCostView:
    """The marginal costs of all modules at one plan; `divergence` is its KL from the dense model, in nats per token."""

    divergence: float
    modules: tuple[ModuleCost, ...]
    best_swap: Swap | None
    others: tuple[OtherPlan, ...]
    measured_on: str
