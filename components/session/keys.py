"""From the page's settings to the library's configs, and to the keys that results are kept under.

Every function raises UserError for numbers out of range.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import NamedTuple, get_args

from components.session.settings import Settings
from intraslice.config import CalibrationConfig, EvaluationConfig, SliceConfig, parse_lock
from intraslice.errors import UserError
from intraslice.methods.registry import METHODS
from intraslice.pretrained.precision import AUTO, Precision, choose_device, choose_dtype
from intraslice.reporting import Recipe


class CalibrationKey(NamedTuple):
    """What a calibration depends on."""

    model: str
    dtype: Precision
    config: CalibrationConfig


SliceKey = tuple[CalibrationKey, SliceConfig, str]


def calibration_key(settings: Settings) -> CalibrationKey:
    """What the calibration of these settings depends on."""
    counts = (int(settings.sequences), int(settings.length), int(settings.seed))
    config = CalibrationConfig(settings.upload or settings.text, *counts)
    return CalibrationKey(settings.model, precision(settings), config)


def precision(settings: Settings) -> Precision:
    """What the model runs in: what was asked for, or what suits this machine."""
    if settings.dtype not in (AUTO, *get_args(Precision)):
        raise UserError(f"precision is {settings.dtype!r}; wanted one of {AUTO}, {', '.join(get_args(Precision))}")
    return choose_dtype(settings.dtype, choose_device())


def is_usual(settings: Settings) -> bool:
    """Whether model and calibration are those that the page opens with, in whatever precision."""
    usual = calibration_key(Settings())
    return calibration_key(settings)._replace(dtype=usual.dtype) == usual


def slice_config(settings: Settings) -> SliceConfig:
    """The library's settings of a slice."""
    return SliceConfig(
        settings.sparsity / 100,
        settings.estimator,
        None if settings.bias is None else float(settings.bias),
        settings.cap / 100,
        settings.order,
        bool(settings.iterative) and settings.order == "sequential",
        locked=tuple(parse_lock(part) for part in settings.locked.split(",") if part.strip()),
    )


def evaluation_config(settings: Settings, tokens: int) -> EvaluationConfig:
    """Held-out text of the same source, in windows as long as a calibration sequence, one at least."""
    length = int(settings.length)
    return EvaluationConfig(settings.upload or settings.text, max(tokens, length), length)


def recipe(settings: Settings, evaluation_tokens: int) -> Recipe:
    """All that makes the page's model and numbers again.

    An upload is named by its file name alone: that is how it lies on the person's own disk.
    """
    text = Path(settings.upload).name if settings.upload else settings.text
    return Recipe(
        settings.model,
        slice_config(settings),
        replace(calibration_key(settings).config, text=text),
        replace(evaluation_config(settings, evaluation_tokens), text=text),
        dtype=precision(settings),
    )


def slice_key(settings: Settings, method: str) -> SliceKey:
    """What a sliced model depends on."""
    config, entry = slice_config(settings), METHODS.require(method)
    if not entry.uses_estimator:  # of all other settings these know the order, at the most
        config = SliceConfig(config.sparsity, order=config.order if entry.uses_order else "sequential")
    return calibration_key(settings), config, method
