"""From the page's settings to the library's configs, and to the keys that results are kept under.

All work comes through here, and nothing goes on that is out of the page's bounds: every function raises UserError for
values that are no settings, for numbers out of range and, where the page is hosted, for what lies on the server.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple, get_args

from huggingface_hub.errors import HFValidationError
from huggingface_hub.utils import validate_repo_id

from components.i18n.language import Words, later, term
from components.jobs import limits
from components.state.settings import Settings
from intraslice import data
from intraslice.core.config import CalibrationConfig, EvaluationConfig, Order, Shapes, SliceConfig, parse_lock
from intraslice.core.errors import UserError
from intraslice.core.registry import ESTIMATORS
from intraslice.methods.registry import METHODS
from intraslice.pretrained.precision import AUTO, Precision, choose_device, choose_dtype
from intraslice.pretrained.sources import DEFAULT
from intraslice.reporting import Recipe


class CalibrationKey(NamedTuple):
    """What a calibration depends on."""

    model: str
    dtype: Precision
    config: CalibrationConfig


SliceKey = tuple[CalibrationKey, SliceConfig, str]


def calibration_key(settings: Settings) -> CalibrationKey:
    """What the calibration of these settings depends on."""
    sequences = limits.whole("sequences", settings.sequences, 1, limits.SEQUENCES.value)
    length = limits.whole("length", settings.length, 2, limits.LENGTH.value)
    seed = limits.whole("seed", settings.seed, 0, limits.MOST_SEED)
    if sequences * length > (most := limits.CALIBRATION_TOKENS.value):
        raise UserError(
            later(
                "{sequences:,} sequences of {length:,} tokens are {product:,}; wanted at most {most:,} tokens; "
                "lower one of them",
                sequences=sequences,
                length=length,
                product=sequences * length,
                most=most,
            )
        )
    config = CalibrationConfig(text_of(settings), sequences, length, seed)
    return CalibrationKey(model_name(settings.model), precision(settings), config)


def require_allowed(settings: Settings) -> None:
    """Raises UserError for settings that no work would begin with."""
    calibration_key(settings)
    slice_config(settings)


def model_name(model: Any) -> str:
    """The name of a model that visitors may ask for: where the page is hosted that is none of the server's folders."""
    name = limits.words("model", model, limits.NAME.value)
    if limits.hosted() and name != DEFAULT:
        try:
            validate_repo_id(name)
        except HFValidationError:
            is_id = False
        else:
            is_id = not Path(name).exists()  # the library would take it for the folder
        if not is_id:
            raise UserError(
                later(
                    "model {name} is no Hub id; wanted one, such as HuggingFaceTB/SmolLM2-360M-Instruct, "
                    "or {default!r}",
                    name=limits.shown(name),
                    default=DEFAULT,
                )
            )
    return name


def text_of(settings: Settings) -> str:
    """The upload, whose path `ui/handlers.py` has let in, else the text; where the page is hosted that has a name."""
    if settings.upload:
        return settings.upload
    text = limits.words("text", settings.text, limits.NAME.value)
    if limits.hosted() and text not in data.NAMED_CORPORA:
        raise UserError(
            later(
                "text {text} is none of {texts}; upload a file of yours instead",
                text=limits.shown(text),
                texts=", ".join(data.NAMED_CORPORA),
            )
        )
    return text


def described(text: str) -> Words:
    """What a text is, where it comes from and its licence, for people."""
    told = data.describe(text)
    name, own, _ = told.partition(", your own file")
    if own:
        return later("{name}, your own file", name=name)
    what, bracket, source = told.partition(" (")
    return Words(lambda: term(what) + bracket + source)


def precision(settings: Settings) -> Precision:
    """What the model runs in: what was asked for, or what suits this machine."""
    return choose_dtype(limits.choice("precision", settings.dtype, (AUTO, *get_args(Precision))), choose_device())


def is_usual(settings: Settings) -> bool:
    """Whether model and calibration are those that the page opens with, in whatever precision."""
    usual = calibration_key(Settings())
    return calibration_key(settings)._replace(dtype=usual.dtype) == usual


def slice_config(settings: Settings) -> SliceConfig:
    """The library's settings of a slice."""
    locked = limits.words(later("ratios given by hand"), settings.locked, limits.LOCKED.value)
    return SliceConfig(
        limits.number("sparsity", settings.sparsity, 0, 80) / 100,
        limits.choice("estimator", settings.estimator, ESTIMATORS),
        None if settings.bias is None else float(limits.number("bias", settings.bias, 0.2, 2)),
        limits.number("cap", settings.cap, 0, 100) / 100,
        limits.choice("order", settings.order, get_args(Order)),
        limits.flag("iterative", settings.iterative) and settings.order == "sequential",
        locked=tuple(parse_lock(part) for part in locked.split(",") if part.strip()),
        shapes=limits.choice("shapes", settings.shapes, get_args(Shapes)),
    )


def evaluation_config(settings: Settings, tokens: int) -> EvaluationConfig:
    """Held-out text of the same source, in windows as long as a calibration sequence, one at least."""
    config = calibration_key(settings).config
    return EvaluationConfig(config.text, max(tokens, config.length), config.length)


def recipe(settings: Settings, evaluation_tokens: int) -> Recipe:
    """All that makes the page's model and numbers again.

    An upload is named by its file name alone: that is how it lies on the person's own disk.
    """
    key = calibration_key(settings)
    text = Path(key.config.text).name if settings.upload else key.config.text
    return Recipe(
        key.model,
        slice_config(settings),
        replace(key.config, text=text),
        replace(evaluation_config(settings, evaluation_tokens), text=text),
        dtype=key.dtype,
    )


def slice_key(settings: Settings, method: str) -> SliceKey:
    """What a sliced model depends on."""
    config, entry = slice_config(settings), METHODS.require(method)
    if not entry.uses_estimator:  # of all other settings these know the order and the shapes, at the most
        order = config.order if entry.uses_order else "sequential"
        config = SliceConfig(config.sparsity, order=order, shapes=config.shapes if entry.uses_shapes else "free")
    return calibration_key(settings), config, method
