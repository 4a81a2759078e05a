"""What *Was it right?* shows, as plain numbers."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple


@dataclass(frozen=True)
class ModuleVerdict:
    """One module sliced alone: KL from the dense model (nats a token), its standard error, and what was foretold of it.

    `foretold` and `places` are by estimator; place 1 hurts most among the modules of its kind.
    """

    layer: int
    module: str
    damage: float
    error: float
    place: int
    predicted: Mapping[str, float]
    places: Mapping[str, int]


class Misjudged(NamedTuple):
    """A module whose measured place is far from the foretold one, among `of` modules of its kind."""

    estimator: str
    layer: int
    module: str
    measured: int
    predicted: int
    of: int


@dataclass(frozen=True)
class VerdictView:
    """Every module sliced alone at `ratio`. `rho` is Spearman's, by estimator and kind of module, where it exists.

    `ceiling` is the rho that a perfect estimator would be expected to read, the noise of the tokens being what it is.
    `misjudged` comes worst first.
    """

    ratio: float
    tokens: int
    modules: tuple[ModuleVerdict, ...]
    rho: Mapping[str, Mapping[str, float | None]]
    ceiling: Mapping[str, float | None]
    misjudged: tuple[Misjudged, ...]
    measured_on: str
