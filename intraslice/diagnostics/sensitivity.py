"""Measured sensitivity: what one module's slice alone costs, as KL divergence from the dense model or as loss.

*Alone*: each module is sliced while the rest stays dense. *In context*: each module of a sliced model is dense again,
and what that heals is its damage. What the estimators foretell of it is judged in rank_agreement.py.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Literal

from jaxtyping import Int
from torch import Tensor, nn
from transformers import PreTrainedModel

from intraslice.calibration.stats import CalibrationStats
from intraslice.core.cache import cache_path
from intraslice.core.config import MODULE_KINDS, ModuleKind, SliceConfig
from intraslice.core.errors import UserError
from intraslice.core.progress import ProgressCallback
from intraslice.diagnostics.changes import Change, Readings, kept_changes, measure_changes, parameters_in
from intraslice.evaluation.perplexity import Estimate, mean_over_windows
from intraslice.loading import LoadedModel
from intraslice.modeling.surgery import with_parts
from intraslice.planning.profile import LayerProfile
from intraslice.planning.ratios import LayerPlan, SlicePlan, make_plan
from intraslice.planning.widths import neurons_kept
from intraslice.slicing.driver import slice_model

FORMAT = "4"
PARTS: dict[ModuleKind, str] = {"attention": "self_attn", "mlp": "mlp"}  # of a canonical layer
Measure = Literal["kl", "loss"]


@dataclass(frozen=True)
class ModuleDamage:
    """What slicing one module costs, by window of the text, in nats a token."""

    layer: int
    module: ModuleKind
    ratio: float  # of the module that is sliced
    removed: int  # parameters
    divergences: tuple[float, ...]  # KL from the dense model; in context it may be below zero
    increases: tuple[float, ...]  # of the loss; below zero where the sliced model does better

    def by_window(self, measure: Measure) -> tuple[float, ...]:
        """The damage in each window."""
        return self.divergences if measure == "kl" else self.increases

    def damage(self, measure: Measure) -> Estimate:
        """The mean over windows, with its standard error."""
        return mean_over_windows(self.by_window(measure))


@dataclass(frozen=True)
class Sensitivity:
    """Every module, layer by layer, attention first."""

    ratio: float | None  # of the one module that is sliced; None in context, where each has its own
    base_loss: float  # of the model that modules are changed in, dense unless in context; mean, in nats a token
    tokens: int  # scored
    modules: tuple[ModuleDamage, ...]
    context: Estimate | None = None  # in context: the whole sliced model's KL from the dense one


def cut_alone(dense: LayerPlan, profile: LayerProfile, module: ModuleKind, ratio: float) -> LayerPlan:
    """A layer's plan in which one module gives `ratio` of its channels or neurons and the other nothing."""
    if module == "mlp":
        return replace(dense, mlp_ratio=ratio, neurons=neurons_kept(profile.sizes.neurons, ratio))
    keep = round(profile.sizes.channels * (1 - ratio))
    heads = tuple(profile.table.alive[keep].nonzero().flatten().tolist())
    _, kv_heads, dim = profile.shapes[keep]
    return replace(dense, attention_ratio=ratio, heads=heads, kv_heads=kv_heads, dim=dim)


def slice_alone(
    model: PreTrainedModel, stats: CalibrationStats, layer: int, module: ModuleKind, ratio: float
) -> nn.Module:
    """The layer with one module sliced, in one shot; every other layer is the dense one and costs nothing."""
    plan = make_plan(stats.profile, SliceConfig(0.0, order="one-shot"))
    layers = list(plan.layers)
    layers[layer] = cut_alone(layers[layer], stats.profile.layers[layer], module, ratio)
    return slice_model(model, replace(plan, layers=tuple(layers)), stats, progress=False).model.layers[layer]


def with_module(layer: nn.Module, module: ModuleKind, other: nn.Module) -> nn.Module:
    """A copy of a layer that has one module of another layer in its place."""
    return with_parts(layer, {getattr(layer, PARTS[module]): getattr(other, PARTS[module])})


def measure_sensitivity(
    loaded: LoadedModel,
    stats: CalibrationStats,
    tokens: Int[Tensor, "windows window"],
    ratio: float = 0.3,
    *,
    progress: ProgressCallback | bool = True,
) -> Sensitivity:
    """Slice each module alone at `ratio`, in one shot, and measure the damage on `tokens`; `progress` counts modules.

    Finished modules are kept under the model, the calibration, the tokens and the ratio (see `measure_changes`). Raises
    UserError for a ratio that is not above 0 and up to 0.95.
    """
    path = _alone_path(loaded, stats, tokens, ratio)
    model = loaded.model
    changes = [
        Change(layer, partial(slice_alone, model, stats, layer, module, ratio)) for layer, module in modules_of(model)
    ]
    readings = measure_changes(model, model, changes, tokens, path, "sensitivity", progress=progress)
    return _sensitivity(model, readings, tokens, [ratio] * len(changes), 1)


def kept_sensitivity(
    loaded: LoadedModel, stats: CalibrationStats, tokens: Int[Tensor, "windows window"], ratio: float = 0.3
) -> Sensitivity | None:
    """What `measure_sensitivity` would only read from the disk; None while any module is still to be measured."""
    readings = kept_changes(_alone_path(loaded, stats, tokens, ratio), 2 * len(stats.layers))
    if readings is None:
        return None
    return _sensitivity(loaded.model, readings, tokens, [ratio] * len(readings.changed), 1)


def measure_in_context(
    loaded: LoadedModel,
    stats: CalibrationStats,
    sliced: PreTrainedModel,
    plan: SlicePlan,
    tokens: Int[Tensor, "windows window"],
    method: str = "intraslice",
    *,
    progress: ProgressCallback | bool = True,
) -> Sensitivity:
    """Make each module of a sliced model dense again, and measure what that heals on `tokens`.

    `sliced` is what `method` makes of `plan`; finished modules are kept under both (see `measure_changes`). `progress`
    counts modules.
    """
    dense = loaded.model
    changes = [
        Change(layer, partial(with_module, sliced.model.layers[layer], module, dense.model.layers[layer]))
        for layer, module in modules_of(dense)
    ]
    path = sensitivity_path(loaded, stats, tokens, "in context", method, plan.config, plan.layers)
    readings = measure_changes(dense, sliced, changes, tokens, path, "sensitivity in context", progress=progress)
    ratios = [ratio for layer in plan.layers for ratio in (layer.attention_ratio, layer.mlp_ratio)]
    found = _sensitivity(sliced, readings, tokens, ratios, -1)
    return replace(found, ratio=None, context=mean_over_windows(readings.base.divergences))


def modules_of(model: PreTrainedModel) -> list[tuple[int, ModuleKind]]:
    """Every module, layer by layer, attention first."""
    return [(layer, module) for layer in range(len(model.model.layers)) for module in MODULE_KINDS]


def sensitivity_path(
    loaded: LoadedModel, stats: CalibrationStats, tokens: Int[Tensor, "windows window"], *what: object
) -> Path:
    """Where measurements of one model, calibration and text are kept."""
    attention_sum = stats.layers[-1].attention_sum  # tells one calibration from another
    calibration = stats.tokens, stats.targets, attention_sum
    parts = (FORMAT, loaded.fingerprint, loaded.model.dtype, *calibration, tokens, *what)
    return cache_path("sensitivity", ".json", *parts)


def _alone_path(
    loaded: LoadedModel, stats: CalibrationStats, tokens: Int[Tensor, "windows window"], ratio: float
) -> Path:
    require_ratio(ratio)
    return sensitivity_path(loaded, stats, tokens, float(ratio))


def require_ratio(ratio: float) -> None:
    """Raise UserError unless that share of a module can go."""
    if not 0 < ratio <= 0.95:
        raise UserError(f"ratio must be above 0 and at most 0.95, got {ratio!r}")


def _sensitivity(
    base: PreTrainedModel, readings: Readings, tokens: Tensor, ratios: Sequence[float], sign: int
) -> Sensitivity:
    """What each change adds to the base's divergence and loss; with the sign -1 what it takes away."""

    def difference(ours: tuple[float, ...], theirs: tuple[float, ...]) -> tuple[float, ...]:
        return tuple(sign * (one - other) for one, other in zip(ours, theirs, strict=True))

    damages = []
    for (layer, module), changed, ratio in zip(modules_of(base), readings.changed, ratios, strict=True):
        removed = sign * (parameters_in(base.model.layers[layer]) - changed.parameters)
        divergences = difference(changed.divergences, readings.base.divergences)
        increases = difference(changed.losses, readings.base.losses)
        damages.append(ModuleDamage(layer, module, ratio, removed, divergences, increases))
    loss = mean_over_windows(readings.base.losses).value
    return Sensitivity(ratios[0], loss, tokens[:, 1:].numel(), tuple(damages))
