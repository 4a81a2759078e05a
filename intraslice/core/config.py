"""Configuration dataclasses. They validate on construction, so that errors are raised before a model is loaded."""

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, NamedTuple, Self, cast, get_args

from intraslice.core.checks import check_fields, integer, number, one_of, quoted
from intraslice.core.errors import Message, UserError
from intraslice.core.fit_config import INTRASLICE_FIT, FitConfig
from intraslice.core.registry import ESTIMATORS, RECOVERIES

Order = Literal["sequential", "one-shot"]
ModuleKind = Literal["attention", "mlp"]
MODULE_KINDS: tuple[ModuleKind, ...] = get_args(ModuleKind)
FREE, RUNTIME = SHAPES = ("free", "runtime")
Targets = Literal["sampled", "text"]
RatioLock = tuple[int, ModuleKind, float]  # layer, module, ratio
HeadLock = tuple[int, ModuleKind, str, int, str]  # layer, "attention", "head", query head, "keep" or "remove"
NeuronLock = tuple[int, ModuleKind, str, int]  # layer, "mlp", "neurons", number of neurons that are kept
Lock = RatioLock | HeadLock | NeuronLock
KEEP, REMOVE = HEAD_STATES = ("keep", "remove")
NO_RECOVERY = "none"
MAX_SPARSITY = 0.8
BIASES = (0.2, 2)  # smallest and largest
GRADIENT_GROUP = 1  # sequences whose gradients are summed before squaring (published: 8)


def option(default: Any, help: str, flag: str = "", **settings: Any) -> Any:
    """A field of a config that the command line offers as an option, `flag` if its name differs.

    `settings` are argparse's where they do not follow from the field's type, or `registry`, which has its values.
    """
    return field(default=default, metadata={"help": help, "flag": flag} | settings)


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
    pairs = [word.partition("=")[::2] for word in named.split()]
    multiples = {name: int(multiple) if multiple.isdecimal() else 0 for name, multiple in pairs}
    is_valid = 0 < len(multiples) == len(pairs) and multiples.keys() <= {*Alignment._fields}
    in_range = all(1 <= multiple <= MAX_MULTIPLE for multiple in multiples.values())
    if not (is_valid and in_range) or multiples.get("dim", 2) % 2:
        raise UserError(
            "shapes must be {names}, or multiples from 1 to {limit:,} such as mlp=64 dim=8 (dim even), got {value}",
            names=", ".join([*SHAPES, *PRESETS]),
            limit=MAX_MULTIPLE,
            value=quoted(shapes),
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

    @classmethod
    def quick(cls, **others: Any) -> Self:
        """The default budget, 32 x 512 tokens of the text. `others` are values of further fields, such as `text`."""
        return cls(**others)

    @classmethod
    def thorough(cls, **others: Any) -> Self:
        """128 x 512 tokens of the text, and 16 x 512 that the dense model samples: better slices, in 5 times the time.

        `others` as in `quick`. By how much: "A longer calibration" in docs/results.md.
        """
        return cls(**{"sequences": 128, "samples": 16} | others)

    @property
    def tokens(self) -> int:
        """All tokens, sampled ones included."""
        return (self.sequences + self.samples) * self.length

    def __post_init__(self) -> None:
        check_fields(self, _text_name, text=())
        check_fields(self, integer, sequences=(1,), samples=(0,), length=(2,), seed=(0,))
        check_fields(self, one_of, targets=(get_args(Targets),))


BUDGETS: dict[str, Callable[..., CalibrationConfig]] = {
    "quick": CalibrationConfig.quick,
    "thorough": CalibrationConfig.thorough,
}


@dataclass(frozen=True)
class EvaluationConfig:
    """The text for perplexity: `tokens` tokens in non-overlapping windows of `window` tokens."""

    text: str = option("default", "evaluation text", "--eval", metavar="NAME|FILE")
    tokens: int = option(
        16384, "number of tokens of the evaluation text, rounded down to whole windows", "--eval-tokens", metavar="N"
    )
    window: int = 512

    def __post_init__(self) -> None:
        check_fields(self, _text_name, text=())
        check_fields(self, integer, window=(2,))
        check_fields(self, integer, tokens=(self.window,))


@dataclass(frozen=True)
class SliceConfig:
    """How much to remove and by which rule.

    `bias` is the paper's lambda_b. `locked` ratios and units (see `parse_lock`) are fixed by the user; all else
    compensates, so that the total stays the same. "free" `shapes` have a lower perplexity than "runtime" ones; free
    ones in multiples are "mlp=64 dim=8" and the like (see `canonical_shapes`). A `recovery` trains after slicing, for
    `epochs`; the rest of it is in its class. `fit` says how layers are fitted; method `paper` sets it.
    """

    sparsity: float = option(0.3, "fraction of the decoder layers' parameters to remove")
    estimator: str = option(
        "pca",
        "ratio estimator, your own path.py:function or importances.json (see docs/extending.md), or auto: the best of "
        "several, by KL at 30% (ratios, evaluate, slice and generate, where it is the default)",
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
    locked: tuple[Lock, ...] = option(
        (),
        "fix the ratio of one module, such as --lock 7 mlp 25, its neurons, such as --lock 7 mlp neurons 400, or a "
        "query head, such as --lock 3 attention head 5 keep (with its key/value head) or remove; repeatable; all else "
        "is adjusted to meet the sparsity",
        "--lock",
        nargs="+",
        action="append",
        metavar=("LAYER", "MODULE PERCENT|UNIT"),
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
    fit: FitConfig = INTRASLICE_FIT

    @property
    def alignment(self) -> Alignment:
        """Multiples of the sizes; the smallest where the shapes name none."""
        pairs = (pair.split("=") for pair in self.shapes.split() if "=" in pair)
        return Alignment(**{name: int(multiple) for name, multiple in pairs})

    @property
    def ratio_locks(self) -> list[RatioLock]:
        """The locked ratios of modules."""
        return [lock for lock in self.locked if len(lock) == 3]

    @property
    def head_locks(self) -> list[HeadLock]:
        """The locked query heads."""
        return [lock for lock in self.locked if len(lock) == 5]

    @property
    def neuron_locks(self) -> list[NeuronLock]:
        """The locked numbers of neurons."""
        return [lock for lock in self.locked if len(lock) == 4]

    def __post_init__(self) -> None:
        object.__setattr__(self, "locked", _locks(self.locked))
        hint = "a fraction of the decoder layers' parameters, such as 0.3"
        check_fields(self, number, sparsity=(0, MAX_SPARSITY, hint), bias=BIASES)
        check_fields(self, number, cap=(0, 1, "1 allows removing a whole module"))
        ESTIMATORS.require(self.estimator)
        check_fields(self, one_of, order=(get_args(Order),), recovery=((NO_RECOVERY, *RECOVERIES),))
        object.__setattr__(self, "shapes", canonical_shapes(self.shapes))
        check_fields(self, number, head_fraction=(1e-3, 1, "1 is a whole head"))
        check_fields(self, integer, gradient_group=(1,), epochs=(0,))
        if not isinstance(self.fit, FitConfig):
            raise UserError("fit must be a FitConfig, such as PAPER_FIT, got {value}", value=quoted(self.fit))
        if self.sparsity > self.cap:
            raise UserError(
                "sparsity must be at most the cap, {cap:g}%, got {sparsity:g}%; raise the cap or lower the sparsity",
                cap=100 * self.cap,
                sparsity=100 * self.sparsity,
            )


def _text_name(name: str, value: Any) -> str:
    if not isinstance(value, (str, Path)):
        raise UserError("text must be the name of a text or of a file, got {value}", value=quoted(value))
    return str(value)


def _locks(locked: Any) -> tuple[Lock, ...]:
    try:
        checked = tuple(_lock(*lock) for lock in locked)
    except TypeError:
        raise UserError(
            "locked must have a layer, a module and a ratio for each lock, as in ((7, 'mlp', 0.25),), got {value}",
            value=quoted(locked),
        ) from None
    if len({lock_target(lock) for lock in checked}) < len(checked):
        raise UserError(
            "a module is locked twice; expected at most one ratio or number of neurons, and one lock a head"
        )
    return checked


def _lock(layer: Any, module: Any, *values: Any) -> Lock:
    """Check the parts of a lock. Raises TypeError for parts that none has."""
    layer, module = integer("a locked layer", layer, 0), one_of("a locked module", module, MODULE_KINDS)
    match module, *values:
        case _, ratio:
            name = Message("the locked ratio of layer {layer}'s {module}", layer=layer, module=module)
            return layer, module, number(name, ratio, 0, 1)
        case "attention", "head", head, state:
            return layer, module, "head", integer("a locked head", head, 0), one_of("its lock", state, HEAD_STATES)
        case "mlp", "neurons", count:
            return layer, module, "neurons", integer("the locked number of neurons", count, 0)
        case _:
            raise TypeError


def lock_target(lock: Lock) -> tuple[int | str, ...]:
    """What the lock is of: a module with its layer, or a head; two locks of the same one contradict each other."""
    return lock[:4] if len(lock) == 5 else lock[:2]


def lock_words(lock: Lock) -> list[str]:
    """The words of a lock, as `parse_lock` reads them."""
    words = [str(part) for part in lock]
    return [*words[:2], f"{100 * lock[2]:.12g}"] if len(lock) == 3 else words


def parse_lock(text: str) -> Lock:
    """Parse a lock: of a ratio, with layer, module and percentage, as in "7 mlp 25", or of units.

    "3 attention head 5 keep" and "3 attention head 5 remove" lock a query head, "7 mlp neurons 400" the number of
    neurons that are kept. Raises UserError for anything else.
    """
    words = text.split()
    try:
        layer, module, *unit = words
        if len(unit) == 1:
            index, percent = int(layer), float(unit[0])
            one_of("a locked module", module, MODULE_KINDS)
            name = Message("the percentage of “{layer} {module}”", layer=layer, module=module)
            number(name, int(percent) if percent.is_integer() else percent, 0, 100)
            return index, cast(ModuleKind, module), percent / 100
        return _lock(int(layer), module, *(int(word) if word.isdecimal() else word for word in unit))
    except (ValueError, TypeError) as error:
        if isinstance(error, UserError):
            raise
        raise UserError(
            "{text!r} is not a locked ratio; expected layer, module and percentage, as in 7 mlp 25, or a unit, as in "
            "3 attention head 5 keep or 7 mlp neurons 400",
            text=text.strip(),
        ) from None


def too_little_removed(config: SliceConfig, removed: float) -> UserError:
    """The error for a plan that removes at most the fraction `removed`, less than its sparsity."""
    causes, ways = [Message("cap {cap:g}%", cap=100 * config.cap)], [Message("raise the cap")] if config.cap < 1 else []
    if config.bias is not None:
        causes.append(Message("bias {bias:g}", bias=config.bias))
        ways.append(Message("change the bias"))
    if config.locked:
        causes.append(Message("the locked ratios"))
        ways.append(Message("unlock ratios"))
    return UserError(
        "sparsity {sparsity:g}% cannot be reached with {causes}: at most {removed:.1%} of the decoder layers' "
        "parameters can be removed; {ways}",
        sparsity=100 * config.sparsity,
        causes=_listed(causes, Message("and")),
        removed=removed,
        ways=_listed([*ways, Message("lower the sparsity")], Message("or")),
    )


def _listed(parts: list[Message], conjunction: Message) -> Message:
    text = parts[0]
    for part in parts[1:-1]:
        text = Message("{others}, {last}", others=text, last=part)
    others = {"others": text, "conjunction": conjunction, "last": parts[-1]}
    return Message("{others} {conjunction} {last}", **others) if len(parts) > 1 else text
