"""From the page's settings to the library's configs, and to the keys that results are kept under."""

from __future__ import annotations

from typing import NamedTuple

from components.session.settings import Settings
from intraslice.config import CalibrationConfig, SliceConfig, parse_lock
from intraslice.methods.registry import Method, uses_estimator


class CalibrationKey(NamedTuple):
    """What a calibration depends on."""

    model: str
    config: CalibrationConfig


SliceKey = tuple[CalibrationKey, SliceConfig, Method]


def calibration_key(settings: Settings) -> CalibrationKey:
    """Raises UserError for numbers out of range."""
    counts = (int(settings.sequences), int(settings.length), int(settings.seed))
    return CalibrationKey(settings.model, CalibrationConfig(settings.upload or settings.text, *counts))


def slice_config(settings: Settings) -> SliceConfig:
    """The library's settings of a slice. Raises UserError for numbers out of range."""
    return SliceConfig(
        settings.sparsity / 100,
        settings.estimator,
        None if settings.bias is None else float(settings.bias),
        settings.cap / 100,
        settings.order,
        bool(settings.iterative) and settings.order == "sequential",
        locked=tuple(parse_lock(part) for part in settings.locked.split(",") if part.strip()),
    )


def slice_key(settings: Settings, method: Method) -> SliceKey:
    """What a sliced model depends on. Raises UserError for numbers out of range."""
    config = slice_config(settings)
    if not uses_estimator(method):  # of all settings these only know the sparsity
        config = SliceConfig(config.sparsity)
    return calibration_key(settings), config, method
