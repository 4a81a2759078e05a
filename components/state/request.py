"""What the page is asked for: the values of its controls, checked once, as the library's configs and cache keys.

Values come in at the page's edge: its events (`ui/handlers.py`), links and pinned settings, programs, command lines.
There `parse` turns them into a `Request`. Everything behind the edge takes that, and checks nothing again; what depends
on the loaded model is checked where the plan is made (`Session`).
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple, cast, get_args

from huggingface_hub.errors import HFValidationError
from huggingface_hub.utils import validate_repo_id

from components.i18n.language import lazy_gettext
from components.jobs import limits
from components.state.choices import ESTIMATORS, METHODS, PRECISIONS, RECOVERIES
from components.state.settings import Settings
from intraslice import data
from intraslice.core.config import (
    NO_RECOVERY,
    CalibrationConfig,
    EvaluationConfig,
    Order,
    Shapes,
    SliceConfig,
    parse_lock,
)
from intraslice.core.errors import UserError
from intraslice.pretrained.precision import AUTO, Precision, choose_device, choose_dtype
from intraslice.pretrained.sources import DEFAULT
from intraslice.reporting import Recipe

DENSE = "dense"  # the method's name in the key of the model that nothing is removed from
NOTHING_REMOVED = SliceConfig(0.0)
ORDERS: tuple[Order, ...] = get_args(Order)
SHAPES: tuple[Shapes, ...] = get_args(Shapes)


class CalibrationKey(NamedTuple):
    """What a calibration depends on."""

    model: str
    dtype: Precision
    config: CalibrationConfig

    def evaluation(self, tokens: int) -> EvaluationConfig:
        """Held-out text of the same source, in windows as long as a calibration sequence, one at least."""
        config = self.config
        return EvaluationConfig(config.text, max(tokens, config.length), config.length)


class SliceKey(NamedTuple):
    """What a sliced model depends on."""

    calibration: CalibrationKey
    config: SliceConfig
    method: str


@dataclass(frozen=True)
class Request:
    """Checked values of the page's controls, and what they mean to the library. Made by `parse`.

    Requests are equal where their settings are. `settings` are the controls' own values, for links, pins and reports.
    """

    settings: Settings
    calibration: CalibrationKey = field(compare=False)
    slicing: SliceConfig = field(compare=False)

    @property
    def is_default_calibration(self) -> bool:
        """Whether model and calibration are those that the page opens with, in whatever precision."""
        usual = Settings()
        config = CalibrationConfig(usual.text, usual.sequences, usual.length, usual.seed)
        return (self.calibration.model, self.calibration.config) == (usual.model, config)

    @property
    def is_default(self) -> bool:
        """Whether the slice is the one that the page opens with, in whatever precision."""
        return self.is_default_calibration and self.slicing == default_slicing()

    @property
    def is_live(self) -> bool:
        """Whether slicing follows every release of the slider: in one shot, without training. Else a button asks."""
        return self.slicing.order == "one-shot" and self.slicing.recovery == NO_RECOVERY

    @property
    def without_recovery(self) -> Request:
        """The same slice as it is before any recovery."""
        slicing = replace(self.slicing, recovery=NO_RECOVERY)
        return replace(self, settings=self.settings._replace(recovery=NO_RECOVERY), slicing=slicing)

    def slice_key(self, method: str) -> SliceKey:
        """The key of a method's model, or of the "dense" one: without the settings that the method does not use."""
        if method == DENSE:
            return SliceKey(self.calibration, NOTHING_REMOVED, method)
        entry, config = METHODS.require(method), self.slicing
        recovery = entry.recovery(config)
        if not entry.uses_estimator:
            order, shapes = config.order if entry.uses_order else "sequential", config.shapes
            shapes = shapes if entry.uses_shapes else "free"
            config = SliceConfig(config.sparsity, order=order, shapes=shapes, recovery=recovery)
        elif recovery != config.recovery:
            config = replace(config, recovery=recovery)
        return SliceKey(self.calibration, config, method)

    def recipe(self, evaluation_tokens: int) -> Recipe:
        """All that makes the page's model and numbers again.

        An upload is named by its file name alone: that is how it lies on the person's own disk.
        """
        key = self.calibration
        text = Path(key.config.text).name if self.settings.upload else key.config.text
        evaluation = replace(key.evaluation(evaluation_tokens), text=text)
        return Recipe(key.model, self.slicing, replace(key.config, text=text), evaluation, dtype=key.dtype)

    def with_settings(self, **values: Any) -> Request:
        """Another request, with other values of some settings. Raises UserError as `parse` does."""
        return parse(self.settings._replace(**values))


def parse(settings: Settings) -> Request:
    """Check the values of the controls, and turn them into what the library takes.

    Raises UserError for values that are no settings, for numbers out of range and, where the page is hosted, for what
    lies on the server. Whether a path is an upload `gradio_compat/inputs.py` checks before.
    """
    config = _calibration(settings)
    key = CalibrationKey(model_name(settings.model), _precision(settings.dtype), config)
    return Request(settings, key, _slicing(settings))


def model_name(model: Any) -> str:
    """The name of a model that clients may ask for: where the page is hosted that is none of the server's folders."""
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
                lazy_gettext(
                    "Model must be a Hub id, such as HuggingFaceTB/SmolLM2-360M-Instruct, or {default!r}, got {name}.",
                    name=limits.shown(name),
                    default=DEFAULT,
                )
            )
    return name


@cache
def default_slicing() -> SliceConfig:
    """The slice that the page opens with."""
    return _slicing(Settings())


def default_precision() -> Precision:
    """What the model runs in where nobody chooses: what suits this machine."""
    return choose_dtype(AUTO, choose_device())


def _precision(dtype: Any) -> Precision:
    name = limits.choice("precision", dtype, (AUTO, *PRECISIONS))
    return default_precision() if name == AUTO else cast(Precision, name)


def _calibration(settings: Settings) -> CalibrationConfig:
    sequences = limits.whole("sequences", settings.sequences, 1, limits.SEQUENCES.value)
    length = limits.whole("length", settings.length, 2, limits.LENGTH.value)
    seed = limits.whole("seed", settings.seed, 0, limits.MAX_SEED)
    if sequences * length > (max_tokens := limits.CALIBRATION_TOKENS.value):
        raise UserError(
            lazy_gettext(
                "Calibration may have at most {limit:,} tokens, got {product:,} ({sequences:,} sequences of "
                "{length:,}). Lower one of them.",
                sequences=sequences,
                length=length,
                product=sequences * length,
                limit=max_tokens,
            )
        )
    return CalibrationConfig(_text(settings), sequences, length, seed)


def _text(settings: Settings) -> str:
    """The upload, else the text; where the page is hosted that has a name."""
    if settings.upload:
        return settings.upload
    text = limits.words("text", settings.text, limits.NAME.value)
    if limits.hosted() and text not in data.NAMED_CORPORA:
        raise UserError(
            lazy_gettext(
                "Text must be one of {texts}, got {text}. Or upload a file of your own.",
                text=limits.shown(text),
                texts=", ".join(data.NAMED_CORPORA),
            )
        )
    return text


def _slicing(settings: Settings) -> SliceConfig:
    locked = limits.words(lazy_gettext("ratios set manually"), settings.locked, limits.LOCKED.value)
    order = cast(Order, limits.choice("order", settings.order, ORDERS))
    return SliceConfig(
        limits.number("sparsity", settings.sparsity, 0, 80) / 100,
        limits.choice("estimator", settings.estimator, ESTIMATORS),
        None if settings.bias is None else float(limits.number("bias", settings.bias, 0.2, 2)),
        limits.number("cap", settings.cap, 0, 100) / 100,
        order,
        limits.flag("iterative", settings.iterative) and order == "sequential",
        locked=tuple(parse_lock(part) for part in locked.split(",") if part.strip()),
        shapes=cast(Shapes, limits.choice("shapes", settings.shapes, SHAPES)),
        recovery=limits.choice("recovery", settings.recovery, (NO_RECOVERY, *RECOVERIES)),
    )
