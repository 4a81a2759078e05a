"""What a run is asked to do. Knows no tensors.

The dataclasses validate at birth, so that a wrong number is refused before any model is loaded.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal, cast, get_args

from intraslice.core.errors import UserError
from intraslice.core.registry import ESTIMATORS, RECOVERIES

Order = Literal["sequential", "one-shot"]
ModuleKind = Literal["attention", "mlp"]
MODULE_KINDS: tuple[ModuleKind, ...] = get_args(ModuleKind)
Shapes = Literal["free", "runtime"]
Targets = Literal["sampled", "text"]
Lock = tuple[int, ModuleKind, float]  # layer, module, ratio
NO_RECOVERY = "none"
GRADIENT_GROUP = 1  # sequences whose gradients are summed before squaring (published: 8)


def _require_range(field: str, value: float, low: float, high: float, hint: str = "") -> None:
    if not (isinstance(value, (int, float)) and math.isfinite(value) and low <= value <= high):
        raise UserError(f"{field} must be between {low:g} and {high:g}{hint and ' (' + hint + ')'}, got {value!r}")


def _require_count(field: str, value: int, low: int, high: int = 2**31 - 1) -> None:
    if not (isinstance(value, int) and low <= value <= high):
        raise UserError(f"{field} must be a whole number from {low} to {high}, got {value!r}")


def _require_choice(field: str, value: str, choices: tuple[str, ...]) -> None:
    if value not in choices:
        raise UserError(f"{field} must be one of {', '.join(choices)}, got {value!r}")


@dataclass(frozen=True)
class CalibrationConfig:
    """Which text the moments and mask gradients are taken on: `sequences` windows of `length` tokens.

    Gradients are those of the loss on `targets`: next tokens that the model itself draws after each prefix (Fisher's
    information proper), or those that the text goes on with (the empirical one, as published).
    """

    text: str = "default"
    sequences: int = 32
    length: int = 512
    seed: int = 0
    targets: Targets = "sampled"

    def __post_init__(self) -> None:
        _require_count("sequences", self.sequences, 1)
        _require_count("length", self.length, 2)
        _require_count("seed", self.seed, 0)
        _require_choice("targets", self.targets, get_args(Targets))


@dataclass(frozen=True)
class EvaluationConfig:
    """Which text perplexity is taken on: `tokens` tokens in non-overlapping windows of `window`."""

    text: str = "default"
    tokens: int = 16384
    window: int = 512

    def __post_init__(self) -> None:
        _require_count("window", self.window, 2)
        _require_count("tokens", self.tokens, self.window)


@dataclass(frozen=True)
class SliceConfig:
    """How much to remove and by which rule.

    `sparsity` is the fraction of decoder-layer parameters to remove. `bias` (the paper's lambda_b) above 1 cuts MLPs
    harder, below 1 the attention; None leaves that to the importances, and is 1 where the estimator has none. `cap`
    bounds every estimated ratio. `locked` ratios are given by hand: they stay as they are and the other modules make up
    for them, so that the total holds. Shapes for a `runtime` such as llama.cpp are heads of full width, with as many
    queries in every group of a layer, and MLP widths in multiples of 32; `free` ones cost less perplexity.
    """

    sparsity: float = 0.3
    estimator: str = "pca"  # a name in `registry.ESTIMATORS`
    bias: float | None = None
    cap: float = 0.8
    order: Order = "sequential"
    iterative: bool = False  # refine the MLPs of layers whose ratio is above `iterative_above`; sequential order only
    iterative_above: float = 0.35
    locked: tuple[Lock, ...] = ()
    head_fraction: float | None = None  # of a head in one unit of attention; None: a channel for pca, a head for fisher
    gradient_group: int = GRADIENT_GROUP
    epochs: int = 1  # of the recovery; 0 leaves it out
    shapes: Shapes = "free"
    recovery: str = NO_RECOVERY  # training after slicing: a name in `registry.RECOVERIES`

    def __post_init__(self) -> None:
        _require_range("sparsity", self.sparsity, 0.0, 0.8, "a fraction of the decoder layers' parameters, such as 0.3")
        if self.bias is not None:
            _require_range("bias", self.bias, 0.2, 2.0)
        _require_range("cap", self.cap, 0.0, 1.0, "1 lets a module go whole")
        ESTIMATORS.require(self.estimator)
        _require_choice("order", self.order, get_args(Order))
        _require_choice("recovery", self.recovery, (NO_RECOVERY, *RECOVERIES))
        _require_choice("shapes", self.shapes, get_args(Shapes))
        _require_range("iterative_above", self.iterative_above, 0.0, 1.0)
        _require_count("gradient_group", self.gradient_group, 1)
        _require_count("epochs", self.epochs, 0)
        if self.head_fraction is not None:
            _require_range("head_fraction", self.head_fraction, 1e-3, 1.0, "1 is a whole head")
        if self.iterative and self.order != "sequential":
            raise UserError("iterative needs the sequential order's activations; choose that order, or leave it off")
        for layer, module, ratio in self.locked:
            _require_count("a locked layer", layer, 0)
            _require_choice("a locked module", module, MODULE_KINDS)
            _require_range(f"the locked ratio of layer {layer}'s {module}", ratio, 0.0, 1.0)
        if len({lock[:2] for lock in self.locked}) < len(self.locked):
            raise UserError("a module is locked twice; give at most one ratio for each")
        if self.sparsity > self.cap:
            raise UserError(f"sparsity must be at most the cap of {self.cap:g}, got {self.sparsity:g}; change one")


def parse_lock(text: str) -> Lock:
    """A ratio given by hand: layer, module and per cent, as in "7 mlp 25". Raises UserError for anything else."""
    try:
        layer, module, percent = text.split()
        number, share = int(layer), float(percent) / 100
    except ValueError:
        raise UserError(
            f"{text.strip()!r} is not a locked ratio; expected layer, module and percentage, as in 7 mlp 25"
        ) from None
    _require_choice("a locked module", module, MODULE_KINDS)
    return number, cast(ModuleKind, module), share
