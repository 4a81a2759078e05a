"""A request to the page: the values of its controls, validated once, as the library's configs and cache keys.

`parse` turns values from outside into a `Request`: those of events (`ui/handlers.py`), links, pinned settings, programs
and command lines. All other code takes a `Request` and does not validate again. Limits that depend on the loaded model
are checked when the plan is computed (`Session`).
"""

from __future__ import annotations

import os
from dataclasses import dataclass, field, replace
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple, cast

from huggingface_hub.errors import HFValidationError
from huggingface_hub.utils import validate_repo_id

from intraslice import data
from intraslice.core import checks
from intraslice.core.config import (
    MAX_SPARSITY,
    NO_RECOVERY,
    SHAPES,
    CalibrationConfig,
    EvaluationConfig,
    Lock,
    Order,
    SliceConfig,
    parse_lock,
)
from intraslice.core.errors import UserError
from intraslice.pretrained.precision import AUTO, Precision, choose_device, choose_dtype
from intraslice.pretrained.sources import DEFAULT, SUGGESTED_MODELS, find_weights
from intraslice.reporting import Recipe

from .. import limits
from .choices import METHODS
from .settings import Settings

MAX_PERCENT = round(100 * MAX_SPARSITY)
ANY_MODEL = "*"  # in the list of models: any on the Hub
DENSE = "dense"  # the method in the dense model's key
NOTHING_REMOVED = SliceConfig(0.0)
_identities: dict[tuple[str, str], str] = {}  # of the models that this process has loaded, by name and precision


class CalibrationKey(NamedTuple):
    """What a calibration depends on, but for the weights that the model's name stands for: see `identity`."""

    model: str
    dtype: Precision
    config: CalibrationConfig

    @property
    def identity(self) -> str:
        """The `LoadedModel.identity` of the model that was last loaded under this name; empty before.

        Names outlive weights: a repository gets a commit, a folder a training step. Caches add it to their keys.
        """
        return _identities.get((self.model, self.dtype), "")

    def note_identity(self, identity: str) -> None:
        """Set `identity`. The caller guarantees that no other model of this name and precision is in use."""
        _identities[self.model, self.dtype] = identity

    def evaluation(self, tokens: int) -> EvaluationConfig:
        """Held-out text of the same source, in windows of the calibration's length; at least one window."""
        config = self.config
        return EvaluationConfig(config.text, max(tokens, config.length), config.length)


class SliceKey(NamedTuple):
    """What a sliced model depends on."""

    calibration: CalibrationKey
    config: SliceConfig
    method: str


@dataclass(frozen=True)
class Request:
    """Validated values of the page's controls, and the library's configs for them. Created by `parse`.

    Requests are equal if their `settings` are: the values of the controls, for links, pinned settings and reports.
    """

    settings: Settings
    calibration: CalibrationKey = field(compare=False)
    slicing: SliceConfig = field(compare=False)

    @property
    def is_live(self) -> bool:
        """Whether releasing the slider slices at once: one-shot and without recovery. Otherwise a button does."""
        return self.slicing.order == "one-shot" and self.slicing.recovery == NO_RECOVERY

    def slice_key(self, method: str) -> SliceKey:
        """The key of a method's model or of the "dense" one; settings that the method ignores have fixed values."""
        if method == DENSE:
            return SliceKey(self.calibration, NOTHING_REMOVED, method)
        slicing_method, config = METHODS.require(method), self.slicing
        recovery = slicing_method.recovery(config)
        if not slicing_method.uses_estimator:
            order = config.order if slicing_method.uses_order else "sequential"
            shapes = config.shapes if slicing_method.uses_shapes else "free"
            config = SliceConfig(config.sparsity, order=order, shapes=shapes, recovery=recovery)
        elif recovery != config.recovery:
            config = replace(config, recovery=recovery)
        return SliceKey(self.calibration, config, method)

    def recipe(self, evaluation_tokens: int) -> Recipe:
        """Everything that reproduces the page's model and numbers.

        An upload appears by its file name alone, under which the user has it on disk.
        """
        key = self.calibration
        text = Path(key.config.text).name if self.settings.upload else key.config.text
        evaluation = replace(key.evaluation(evaluation_tokens), text=text)
        return Recipe(key.model, self.slicing, replace(key.config, text=text), evaluation, dtype=key.dtype)

    def with_settings(self, **values: Any) -> Request:
        """A copy with other values of some settings. Raises UserError as `parse` does."""
        return parse(self.settings._replace(**values))


def parse(settings: Settings) -> Request:
    """Validate the values of the controls and convert them to the library's configs.

    Raises UserError for values of a wrong type, numbers out of range and, on a hosted page, files of the server.
    `gradio_compat/inputs.py` checks beforehand that a path is an upload.
    """
    config = _calibration(settings)
    key = CalibrationKey(model_name(settings.model), choose_dtype(settings.dtype, choose_device()), config)
    return Request(settings, key, _slicing(settings))


def model_name(model: Any) -> str:
    """Check a model's name, before anything is read or fetched; every name from outside passes here.

    Raises UserError if it is no text or, on a hosted page, none that the owner lists.
    """
    name = checks.text("Model", model, limits.NAME.value)
    names, is_open = offered_models()
    if not is_open:
        checks.one_of("Model", name, names)
    elif limits.hosted() and name not in names:
        try:
            validate_repo_id(name)
        except HFValidationError:
            is_id = False
        else:
            is_id = not Path(name).exists()  # the library would load the folder
        if not is_id:
            raise UserError(
                "Model must be a Hub id, such as HuggingFaceTB/SmolLM2-360M-Instruct, or {default!r}, got {name}.",
                name=checks.quoted(name),
                default=DEFAULT,
            )
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


def default_slicing() -> SliceConfig:
    """The slicing config that the page opens with."""
    return _slicing(Settings())


def default_precision() -> Precision:
    """The precision that suits this machine, for when none is chosen."""
    return choose_dtype(AUTO, choose_device())


def _calibration(settings: Settings) -> CalibrationConfig:
    sequences = checks.integer("sequences", settings.sequences, 1, limits.SEQUENCES.value)
    length = checks.integer("length", settings.length, 2, limits.LENGTH.value)
    seed = checks.integer("seed", settings.seed, 0, checks.MAX_INTEGER)
    if sequences * length > (max_tokens := limits.CALIBRATION_TOKENS.value):
        raise UserError(
            "Calibration may have at most {limit:,} tokens, got {product:,} ({sequences:,} sequences of "
            "{length:,}). Lower one of them.",
            sequences=sequences,
            length=length,
            product=sequences * length,
            limit=max_tokens,
        )
    return CalibrationConfig(_text(settings), sequences, length, seed)


def _text(settings: Settings) -> str:
    """The upload, or else the text. Raises UserError if the page is hosted and the text is no named corpus."""
    if settings.upload:
        return settings.upload
    text = checks.text("text", settings.text, limits.NAME.value)
    if limits.hosted() and text not in data.NAMED_CORPORA:
        raise UserError(
            "Text must be one of {texts}, got {text}. Or upload a file of your own.",
            text=checks.quoted(text),
            texts=", ".join(data.NAMED_CORPORA),
        )
    return text


def _locks(text: Any) -> tuple[Lock, ...]:
    """The locks of a text such as "7 attention 25, 3 mlp 0". Raises UserError for anything else."""
    text = checks.text("Ratios set manually", text, limits.LOCKED.value)
    return tuple(parse_lock(part) for part in text.split(",") if part.strip())


def _slicing(settings: Settings) -> SliceConfig:
    return SliceConfig(
        checks.number("sparsity", settings.sparsity, 0, MAX_PERCENT) / 100,
        settings.estimator,
        settings.bias,
        checks.number("cap", settings.cap, 0, 100) / 100,
        cast(Order, settings.order),
        checks.flag("iterative", settings.iterative) and settings.order == "sequential",
        locked=_locks(settings.locked),
        shapes=checks.one_of("shapes", settings.shapes, SHAPES),
        recovery=settings.recovery,
    )
