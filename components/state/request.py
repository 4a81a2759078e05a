"""A request to the page: the values of its controls, validated once, as the library's configs and cache keys.

`parse` turns values from outside into a `Request`, which no other code validates again. Limits that depend on the model
are checked when the plan is computed (`Session`), that a path is an upload beforehand (`gradio_compat/inputs.py`).
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any, NamedTuple

from intraslice.core.config import NO_RECOVERY, CalibrationConfig, EvaluationConfig, SliceConfig
from intraslice.core.errors import UserError
from intraslice.pretrained.precision import AUTO, Precision, choose_device, choose_dtype
from intraslice.records import Recipe
from intraslice.search.choice import Choice

from .. import limits
from .choices import METHODS
from .settings import CONTROLS, Settings

DENSE = "dense"  # the method in the dense model's key
NOTHING_REMOVED = SliceConfig(0.0)
MAX_CHOICES = 10_000  # kept; the library keeps them on the disk
_identities: dict[tuple[str, str], str] = {}  # of the models that this process has loaded, by name and precision
_choices: dict[tuple[CalibrationKey, str], Choice] = {}  # of estimators, by calibration and weights


class CalibrationKey(NamedTuple):
    """What a calibration depends on, but for the weights that the model's name stands for: see `identity`."""

    model: str
    dtype: Precision
    config: CalibrationConfig

    @property
    def identity(self) -> str:
        """The `LoadedModel.identity` last loaded under this name, or ""; for caches, since names outlive weights."""
        return _identities.get((self.model, self.dtype), "")

    def note_identity(self, identity: str) -> None:
        """Set `identity`. The caller guarantees that no other model of this name and precision is in use."""
        _identities[self.model, self.dtype] = identity

    @property
    def weights(self) -> str:
        """The `LoadedModel.weights_digest` last loaded under this name, or ""."""
        return self.identity.partition("-")[0]

    @property
    def choice(self) -> Choice | None:
        """The estimator that a measurement has chosen for this calibration, or None before."""
        return _choices.get((self, self.weights))

    def note_choice(self, choice: Choice, weights: str | None = None) -> None:
        """Set `choice` for the weights of a digest, or those that are loaded; "": before they are loaded."""
        _choices[self, self.weights if weights is None else weights] = choice
        if len(_choices) > MAX_CHOICES:
            del _choices[next(iter(_choices))]

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
    """Validated values of the page's controls, by which requests are equal, and the library's configs for them."""

    settings: Settings
    calibration: CalibrationKey = field(compare=False)
    slicing: SliceConfig = field(compare=False)

    @property
    def is_undecided(self) -> bool:
        """Whether a measurement shall choose the estimator, and has not yet: until then it is the default one."""
        return self.settings.estimator == AUTO and self.calibration.choice is None

    @property
    def named(self) -> Settings:
        """The settings with the name of the estimator that the slice is planned with: links and records name it."""
        return self.settings._replace(estimator=self.slicing.estimator)

    def now(self) -> Request:
        """The request with the estimator that has been chosen meanwhile, if a measurement shall choose it."""
        return parse(self.settings) if self.settings.estimator == AUTO else self

    @property
    def is_live(self) -> bool:
        """Whether releasing the slider slices at once: one-shot and without recovery. Otherwise a button does."""
        return self.slicing.order == "one-shot" and self.slicing.recovery == NO_RECOVERY

    def slice_key(self, method: str) -> SliceKey:
        """The key of a method's model, at sparsity 0 of the dense one. What the method ignores has fixed values."""
        if method == DENSE or not self.slicing.sparsity:
            return SliceKey(self.calibration, NOTHING_REMOVED, DENSE)
        slicing_method, config = METHODS.require(method), self.slicing
        recovery = slicing_method.recovery(config)
        if not slicing_method.uses_estimator:
            order = config.order if slicing_method.uses_order else "sequential"
            shapes = config.shapes if slicing_method.uses_shapes else "free"
            config = SliceConfig(config.sparsity, order=order, shapes=shapes, recovery=recovery)
        else:
            config = slicing_method.configured(config)
        return SliceKey(self.calibration, config, method)

    def recipe(self, evaluation_tokens: int) -> Recipe:
        """What reproduces the page's model and numbers. An upload appears by its file name, which the user has."""
        key = self.calibration
        text = Path(key.config.text).name if self.settings.upload else key.config.text
        evaluation = replace(key.evaluation(evaluation_tokens), text=text)
        return Recipe(key.model, self.slicing, replace(key.config, text=text), evaluation, dtype=key.dtype)

    def with_settings(self, **values: Any) -> Request:
        """A copy with other values of some settings. Raises UserError as `parse` does."""
        return parse(self.settings._replace(**values))


def parse(settings: Settings) -> Request:
    """Validate the controls' values and convert them to the library's configs. Raises UserError for invalid ones."""
    values = _checked(settings, CalibrationConfig, "text" if settings.upload else "")
    config = CalibrationConfig(**{"text": settings.upload} | values)
    if config.tokens > (max_tokens := limits.CALIBRATION_TOKENS.value):
        raise UserError(
            "Calibration may have at most {limit:,} tokens, got {product:,} ({sequences:,} sequences of "
            "{length:,}). Lower one of them.",
            sequences=config.sequences + config.samples,
            length=config.length,
            product=config.tokens,
            limit=max_tokens,
        )
    CONTROLS["iterative"].check(settings.iterative)  # in no config
    model, dtype = CONTROLS["model"].check(settings.model), choose_dtype(settings.dtype, choose_device())
    key, slicing = CalibrationKey(model, dtype, config), _checked(settings, SliceConfig)
    if settings.estimator == AUTO:
        slicing["estimator"] = key.choice.name if key.choice else SliceConfig.estimator
    return Request(settings, key, SliceConfig(**slicing))


def from_recipe(recipe: Recipe) -> Request:
    """The request of a recipe, as far as the page has controls for it. Raises UserError for invalid values."""
    values = asdict(recipe.slicing) | asdict(recipe.calibration) | {"model": recipe.model, "dtype": recipe.dtype}
    values |= {name: round(100 * values[name], 9) for name in ("sparsity", "cap")} | {"locked": ""}
    return parse(Settings(**{name: values[name] for name in Settings._fields if name in values}))


def default_precision() -> Precision:
    """The precision that suits this machine, for when none is chosen."""
    return choose_dtype(AUTO, choose_device())


def _checked(settings: Settings, config: type, without: str = "") -> dict[str, Any]:
    """The checked values of the settings that are fields of a config, but for `without`."""
    names = [part.name for part in fields(config) if part.name in CONTROLS and part.name != without]
    return {name: CONTROLS[name].check(getattr(settings, name)) for name in names}
