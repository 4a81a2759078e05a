"""The page's settings: a line of `Settings` declares name, type, default and all else but the component.

Handlers, links, the pinned setting, requests, programs and tests read it there. The component is the entry of the same
name in `frame/controls.py`. Plain values: no tensors, no gradio.
"""

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Annotated, Any, NamedTuple, get_type_hints

from huggingface_hub.errors import HFValidationError
from huggingface_hub.utils import validate_repo_id

from intraslice.core import checks
from intraslice.core.config import MAX_SPARSITY, RUNTIME, SHAPES, CalibrationConfig, Lock, SliceConfig, parse_lock
from intraslice.core.errors import UserError
from intraslice.pretrained.sources import DEFAULT, SUGGESTED_MODELS, find_weights
from intraslice.token_windows import NAMED_CORPORA

from .. import limits
from ..i18n.language import gettext
from ..limits import Limit
from .choices import label_of_recovery

PROMPT = "Why does it rain?"  # shown when the page opens
MAX_PERCENT = round(100 * MAX_SPARSITY)
ANY_MODEL = "*"  # in the list of models: any on the Hub


@dataclass(frozen=True)
class Control:
    """What the page does with a setting's values."""

    # A value from outside as the field of the same name of the library's config, which checks the rest.
    check: Callable[[Any], Any] = lambda value: value
    describe: Callable[[Any], str] | None = None  # in the pinned setting's name, a value that differs from the current
    calibrates: bool = False  # whether the calibration depends on it; otherwise only the slice does
    slider: tuple[float, float] | None = None  # its range, and that of a link; programs may go beyond it
    in_link: bool = True  # whether links, undo and redo set it


def model_name(model: Any) -> str:
    """Check a model's name, as all from outside, before it is read or fetched. Raises UserError if none is allowed."""
    name = checks.text("Model", model, limits.NAME.value)
    names, is_open = offered_models()
    if not is_open:
        checks.one_of("Model", name, names)
    elif limits.hosted() and name not in names:
        try:
            validate_repo_id(name)
            is_id = not Path(name).exists()  # the library would load the folder
        except HFValidationError:
            is_id = False
        if not is_id:
            text = "Model must be a Hub id, such as HuggingFaceTB/SmolLM2-360M-Instruct, or {default!r}, got {name}."
            raise UserError(text, name=checks.quoted(name), default=DEFAULT)
    return name


def offered_models() -> tuple[list[str], bool]:
    """The models that the page offers, and whether it loads others: on a desktop any, with `*` any on the Hub."""
    listed = _listed_models(os.environ.get(limits.MODELS_VARIABLE, ""))
    names = [name for name in listed if name != ANY_MODEL] or SUGGESTED_MODELS
    return list(dict.fromkeys([DEFAULT, *names])), ANY_MODEL in listed or not limits.hosted()


@cache
def _listed_models(names: str) -> list[str]:
    listed = names.split()
    for name in listed:
        try:
            if name != ANY_MODEL:
                find_weights(name)
        except (UserError, OSError) as error:
            message = "{variable}: {error}; separate names by spaces"
            raise UserError(message, variable=limits.MODELS_VARIABLE, error=str(error)) from error
    return listed


def _text(text: Any) -> str:
    """Check a text's name. Raises UserError if the page is hosted and it is no named corpus."""
    name = checks.text("text", text, limits.NAME.value)
    if limits.hosted() and name not in NAMED_CORPORA:
        message = "Text must be one of {texts}, got {text}. Or upload a file of your own."
        raise UserError(message, text=checks.quoted(name), texts=", ".join(NAMED_CORPORA))
    return name


def _locks(text: Any) -> tuple[Lock, ...]:
    """The locks of a text such as "7 attention 25, 3 attention head 5 keep". Raises UserError for anything else."""
    text = checks.text("Ratios set manually", text, limits.LOCKED.value)
    return tuple(parse_lock(part) for part in text.split(",") if part.strip())


def _not_iterative(value: Any) -> bool:
    """Check the value of the removed option: False. Raises UserError, of True with what replaces it."""
    if checks.flag("iterative", value):
        checks.require_current("iterative")
    return False


def _integer(name: str, low: int, limit: Limit | None, describe: Callable[[int], str]) -> Control:
    def check(value: Any) -> int:
        return checks.integer(name, value, low, limit.value if limit else checks.MAX_INTEGER)

    return Control(check, describe, calibrates=True)


def _percent(
    name: str, high: float, slider: tuple[float, float], describe: Callable[[float], str] | None = None
) -> Control:
    return Control(lambda percent: checks.number(name, percent, 0, high) / 100, describe, slider=slider)


class Settings(NamedTuple):
    """The values of the controls, in the order in which handlers and programs pass them."""

    model: Annotated[str, Control(model_name, calibrates=True)] = "default"
    text: Annotated[str, Control(_text, lambda text: gettext("text {name}", name=Path(text).name), calibrates=True)] = (
        CalibrationConfig.text
    )
    upload: Annotated[
        str | None,
        Control(
            describe=lambda path: gettext("your own text") if path else gettext("no text of your own"),
            calibrates=True,
            in_link=False,
        ),
    ] = None
    sequences: Annotated[
        int, _integer("sequences", 1, limits.SEQUENCES, lambda count: gettext("{sequences} sequences", sequences=count))
    ] = CalibrationConfig.sequences
    length: Annotated[
        int, _integer("length", 2, limits.LENGTH, lambda count: gettext("sequences of {length} tokens", length=count))
    ] = CalibrationConfig.length
    seed: Annotated[int, _integer("seed", 0, None, lambda seed: gettext("seed {seed}", seed=seed))] = (
        CalibrationConfig.seed
    )
    # Per cent, as on the slider: answers are still sentences.
    sparsity: Annotated[float, _percent("sparsity", MAX_PERCENT, (0, 60))] = 20
    estimator: Annotated[str, Control()] = SliceConfig.estimator
    bias: Annotated[
        float | None,
        Control(describe=lambda bias: gettext("bias {bias:g}", bias=bias) if bias else gettext("automatic bias")),
    ] = None  # None: set by the importances
    cap: Annotated[float, _percent("cap", 100, (60, 100), lambda percent: gettext("cap {cap:g}%", cap=percent))] = (
        round(100 * SliceConfig.cap)
    )  # per cent
    order: Annotated[
        str, Control(describe=lambda order: gettext("sequential") if order == "sequential" else gettext("one-shot"))
    ] = "one-shot"
    # Removed; its place stays, so that positional calls stay valid.
    iterative: Annotated[bool, Control(_not_iterative)] = False
    locked: Annotated[str, Control(_locks)] = ""  # as in `_locks`, ratios in per cent
    dtype: Annotated[str, Control(describe=str, calibrates=True)] = "auto"
    shapes: Annotated[
        str,
        Control(
            lambda shapes: checks.one_of("shapes", shapes, SHAPES),
            lambda shapes: gettext("runtime shapes") if shapes == RUNTIME else gettext("free shapes"),
        ),
    ] = SliceConfig.shapes
    recovery: Annotated[
        str, Control(describe=lambda name: gettext("recovery: {name}", name=label_of_recovery(name)))
    ] = SliceConfig.recovery
    samples: Annotated[
        int, _integer("samples", 0, limits.SEQUENCES, lambda count: gettext("{samples} samples", samples=count))
    ] = CalibrationConfig.samples


# A lambda in an annotation looks names up in the globals with which that is evaluated.
_HINTS = get_type_hints(Settings, globals(), include_extras=True)
CONTROLS: Mapping[str, Control] = {name: hint.__metadata__[0] for name, hint in _HINTS.items()}
