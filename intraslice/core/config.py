"""Configuration dataclasses. They validate on construction, so that errors are raised before a model is loaded."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from numbers import Integral, Real
from pathlib import Path
from typing import Any, Literal, NamedTuple, cast, get_args

from intraslice.core.errors import UserError
from intraslice.core.registry import ESTIMATORS, RECOVERIES

Order = Literal["sequential", "one-shot"]
ModuleKind = Literal["attention", "mlp"]
MODULE_KINDS: tuple[ModuleKind, ...] = get_args(ModuleKind)
FREE, RUNTIME = SHAPES = ("free", "runtime")
Targets = Literal["sampled", "text"]
Lock = tuple[int, ModuleKind, float]  # layer, module, ratio
NO_RECOVERY = "none"
GRADIENT_GROUP = 1  # sequences whose gradients are summed before squaring (published: 8)


def option(default: Any, help: str, flag: str = "", **settings: Any) -> Any:
    """A field of a config that the command line offers as an option, `flag` if its name differs.

    `settings` are argparse's where they do not follow from the field's type, or `registry`, which has its values.
    """
    return field(default=default, metadata={"help": help, "flag": flag} | settings)


def _as_plain(config: object) -> None:
    """Numbers of numpy and others in the fields of a frozen config become Python's, paths become text."""
    for name, value in vars(config).items():
        object.__setattr__(config, name, _plain(value))


def _plain(value: Any) -> Any:
    if isinstance(value, bool):
        return value
    if isinstance(value, Integral):
        return int(value)
    if isinstance(value, Real):
        return float(value)
    return str(value) if isinstance(value, Path) else value


def _require_range(field: str, value: float, low: float, high: float, hint: str = "") -> None:
    if isinstance(value, bool) or not (
        isinstance(value, (int, float)) and math.isfinite(value) and low <= value <= high
    ):
        raise UserError(f"{field} must be between {low:g} and {high:g}{hint and ' (' + hint + ')'}, got {value!r}")


def require_count(field: str, value: int, low: int, high: int = 2**31 - 1) -> None:
    """Raise UserError unless `value` is a whole number in this range."""
    if isinstance(value, bool) or not (isinstance(value, int) and low <= value <= high):
        raise UserError(f"{field} must be a whole number from {low} to {high}, got {value!r}")


def _require_text(value: str) -> None:
    if not isinstance(value, str):
        raise UserError(f"text must be the name of a text or of a file, got {value!r}")


def require_choice(field: str, value: str, choices: tuple[str, ...]) -> None:
    """Raise UserError unless `value` is one of the choices."""
    if value not in choices:
        raise UserError(f"{field} must be one of {', '.join(choices)}, got {value!r}")


class Alignment(NamedTuple):
    """Multiples in which the sizes of a sliced layer come: neurons of an MLP, channels of a head."""

    mlp: int = 1
    dim: int = 2


# Multiples that matrix products are fast with, and llama.cpp's own shapes.
PRESETS = {"cpu": "mlp=64 dim=16", "cuda": "mlp=64 dim=8", "llama.cpp": RUNTIME}
MAX_MULTIPLE = 4096


def canonical_shapes(shapes: str) -> str:
    """One form of all names of the same shapes: "free", "runtime", or multiples as in "mlp=64 dim=8".

    Raises UserError for anything else.
    """
    named = PRESETS.get(shapes, shapes) if isinstance(shapes, str) else ""
    if named in SHAPES:
        return named
    multiples: dict[str, int] = {}
    for word in named.split():
        name, _, multiple = word.partition("=")
        is_count = multiple.isdecimal() and 1 <= int(multiple) <= MAX_MULTIPLE
        if name in multiples or name not in Alignment._fields or not is_count or (name == "dim" and int(multiple) % 2):
            multiples = {}
            break
        multiples[name] = int(multiple)
    if not multiples:
        raise UserError(
            f"shapes must be {', '.join([*SHAPES, *PRESETS])}, or multiples from 1 to {MAX_MULTIPLE:,} such as mlp=64 "
            f"dim=8 (dim even), got {shapes!r}"
        )
    alignment = Alignment(**multiples)
    return FREE if alignment == Alignment() else f"mlp={alignment.mlp} dim={alignment.dim}"


@dataclass(frozen=True)
class CalibrationConfig:
    """The text for second moments and mask gradients: `sequences` windows of `length` tokens.

    Gradients are those of the loss on `targets`: next tokens sampled from the model ("sampled", the Fisher
    information), or the text's next tokens ("text", the empirical Fisher, as published).
    """

    text: str = option("default", "calibration text", "--calibration", metavar="NAME|FILE")
    sequences: int = option(32, "number of calibration sequences", metavar="N")
    length: int = option(512, "number of tokens per sequence and per perplexity window")
    seed: int = option(
        0, "random seed of the calibration text, of sampled answers and of the search for ratios", metavar="N"
    )
    targets: Targets = option(
        "sampled", "labels for gradients: tokens sampled from the model, or the tokens of the text (as published)"
    )
    samples: int = option(
        0,
        "number of additional calibration sequences, sampled from the dense model, so that the slice also suits other "
        "kinds of text",
        metavar="N",
    )

    def __post_init__(self) -> None:
        _as_plain(self)
        _require_text(self.text)
        require_count("sequences", self.sequences, 1)
        require_count("samples", self.samples, 0)
        require_count("length", self.length, 2)
        require_count("seed", self.seed, 0)
        require_choice("targets", self.targets, get_args(Targets))


@dataclass(frozen=True)
class EvaluationConfig:
    """The text for perplexity: `tokens` tokens in non-overlapping windows of `window` tokens."""

    text: str = option("default", "evaluation text", "--eval", metavar="NAME|FILE")
    tokens: int = option(
        16384, "number of tokens of the evaluation text, rounded down to whole windows", "--eval-tokens", metavar="N"
    )
    window: int = 512

    def __post_init__(self) -> None:
        _as_plain(self)
        _require_text(self.text)
        require_count("window", self.window, 2)
        require_count("tokens", self.tokens, self.window)


@dataclass(frozen=True)
class SliceConfig:
    """How much to remove and by which rule.

    `bias` is the paper's lambda_b. `locked` ratios are fixed by the user; the other modules compensate, so that the
    total stays the same. "free" `shapes` have a lower perplexity than "runtime" ones; free ones in multiples are
    "mlp=64 dim=8" and the like (see `canonical_shapes`). `iterative` refines MLPs whose ratio is above
    `iterative_above`. A `recovery` trains after slicing, for `epochs`.
    """

    sparsity: float = option(0.3, "fraction of the decoder layers' parameters to remove")
    estimator: str = option(
        "pca",
        "ratio estimator, or your own path.py:function or importances.json (see docs/extending.md)",
        registry=ESTIMATORS,
        metavar="NAME|FILE.py:FUNCTION|FILE.json",
    )
    bias: float | None = option(
        None,
        "weight of MLPs against attention: above 1 prunes MLPs more, below 1 attention; "
        "by default derived from the importances, or 1 for an estimator without importances",
        metavar="F",
    )
    cap: float = option(0.8, "upper bound of every ratio that is not locked; 1 allows removing whole modules")
    order: Order = option(
        "sequential",
        "sequential: fits a layer on the outputs of the sliced layers before it; one-shot: on the dense moments",
    )
    iterative: bool = option(
        False, "train the kept neurons of MLPs pruned by more than 35% to match the dense MLP (sequential order; slow)"
    )
    iterative_above: float = 0.35
    locked: tuple[Lock, ...] = option(
        (),
        "fix the ratio of one module, such as --lock 7 mlp 25; repeatable; other modules are adjusted to meet the "
        "sparsity",
        "--lock",
        nargs=3,
        action="append",
        metavar=("LAYER", "MODULE", "PERCENT"),
    )
    head_fraction: float | None = option(  # by default a channel for pca, a head for fisher
        None, "fraction of a head that is ranked as one unit; 1: whole heads", metavar="F"
    )
    gradient_group: int = option(
        GRADIENT_GROUP, "number of sequences whose gradients are summed before squaring", metavar="N"
    )
    epochs: int = option(1, "epochs of the recovery; 0 skips it")
    shapes: str = option(
        FREE,
        "runtime: what llama.cpp runs without padding: heads of full width, equally many query heads for every "
        "key/value head of a layer, and MLP widths in multiples of 32",
        choices=SHAPES,
    )
    recovery: str = option(NO_RECOVERY, "training after slicing, for any method", "--recover", registry=RECOVERIES)

    @property
    def alignment(self) -> Alignment:
        """Multiples of the sizes; the smallest where the shapes name none."""
        pairs = (pair.split("=") for pair in self.shapes.split() if "=" in pair)
        return Alignment(**{name: int(multiple) for name, multiple in pairs})

    def __post_init__(self) -> None:
        _as_plain(self)
        object.__setattr__(self, "locked", _locks(self.locked))
        _require_range("sparsity", self.sparsity, 0.0, 0.8, "a fraction of the decoder layers' parameters, such as 0.3")
        if self.bias is not None:
            _require_range("bias", self.bias, 0.2, 2.0)
        _require_range("cap", self.cap, 0.0, 1.0, "1 allows removing a whole module")
        ESTIMATORS.require(self.estimator)
        require_choice("order", self.order, get_args(Order))
        require_choice("recovery", self.recovery, (NO_RECOVERY, *RECOVERIES))
        object.__setattr__(self, "shapes", canonical_shapes(self.shapes))
        _require_range("iterative_above", self.iterative_above, 0.0, 1.0)
        require_count("gradient_group", self.gradient_group, 1)
        require_count("epochs", self.epochs, 0)
        if self.head_fraction is not None:
            _require_range("head_fraction", self.head_fraction, 1e-3, 1.0, "1 is a whole head")
        if not isinstance(self.iterative, bool):
            raise UserError(f"iterative must be True or False, got {self.iterative!r}")
        if self.iterative and self.order != "sequential":
            raise UserError(
                "iterative requires order 'sequential', got 'one-shot'; change the order, or set iterative to False"
            )
        for layer, module, ratio in self.locked:
            require_count("a locked layer", layer, 0)
            require_choice("a locked module", module, MODULE_KINDS)
            _require_range(f"the locked ratio of layer {layer}'s {module}", ratio, 0.0, 1.0)
        if len({lock[:2] for lock in self.locked}) < len(self.locked):
            raise UserError("a module is locked twice; expected at most one ratio per module")
        if self.sparsity > self.cap:
            raise UserError(
                f"sparsity must be at most the cap, {100 * self.cap:g}%, got {100 * self.sparsity:g}%; "
                "raise the cap or lower the sparsity"
            )


def _locks(locked: Any) -> tuple[Lock, ...]:
    try:
        return tuple((_plain(layer), module, _plain(ratio)) for layer, module, ratio in locked)
    except (TypeError, ValueError):
        raise UserError(
            f"locked must have a layer, a module and a ratio for each lock, as in ((7, 'mlp', 0.25),), got {locked!r}"
        ) from None


def parse_lock(text: str) -> Lock:
    """Parse a locked ratio: layer, module and percentage, as in "7 mlp 25". Raises UserError for anything else."""
    try:
        layer, module, percent = text.split()
        index, ratio = int(layer), float(percent) / 100
    except ValueError:
        raise UserError(
            f"{text.strip()!r} is not a locked ratio; expected layer, module and percentage, as in 7 mlp 25"
        ) from None
    require_choice("a locked module", module, MODULE_KINDS)
    return index, cast(ModuleKind, module), ratio


def too_little_removed(config: SliceConfig, removed: float) -> UserError:
    """The error for a plan that removes at most the fraction `removed`, less than its sparsity."""
    causes, ways = [f"cap {100 * config.cap:g}%"], ["raise the cap"] if config.cap < 1 else []
    if config.bias is not None:
        causes.append(f"bias {config.bias:g}")
        ways.append("change the bias")
    if config.locked:
        causes.append("the locked ratios")
        ways.append("unlock ratios")
    return UserError(
        f"sparsity {100 * config.sparsity:g}% cannot be reached with {_listed(causes, 'and')}: at most {removed:.1%} "
        f"of the decoder layers' parameters can be removed; {_listed([*ways, 'lower the sparsity'], 'or')}"
    )


def missed_by_multiples(config: SliceConfig, removed: float) -> UserError:
    """The error for a plan whose multiples keep it from its sparsity: it removes the fraction `removed`."""
    return UserError(
        f"sizes in multiples of {config.shapes} cannot meet sparsity {100 * config.sparsity:g}%: they remove "
        f"{removed:.1%} of the decoder layers' parameters; choose smaller multiples or another sparsity"
    )


def too_much_locked(config: SliceConfig, removed: float) -> UserError:
    """The error for locked ratios that alone remove the fraction `removed`, more than the sparsity."""
    return UserError(
        f"the locked ratios remove {removed:.1%} of the decoder layers' parameters, more than the sparsity of "
        f"{100 * config.sparsity:g}%; unlock ratios or raise the sparsity"
    )


def _listed(parts: list[str], conjunction: str) -> str:
    *before, last = parts
    return f"{', '.join(before)} {conjunction} {last}" if before else last
