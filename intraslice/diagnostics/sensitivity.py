"""Measured sensitivity: the damage of slicing single modules, as KL divergence from the dense model or as loss.

*Alone*: one module is sliced, the rest stays dense. *In context*: one module of a sliced model is replaced by the dense
one, and its damage is the improvement. `rank_agreement.py` compares it with the estimators' predictions.
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
from intraslice.diagnostics.changes import Change, Measurements, cached_changes, measure_changes, parameters_in
from intraslice.evaluation.perplexity import Estimate, mean_over_windows
from intraslice.loading import LoadedModel
from intraslice.modeling.surgery import replace_modules
from intraslice.planning.profile import LayerProfile
from intraslice.planning.ratios import LayerPlan, SlicePlan, make_plan
from intraslice.planning.sizes import neurons_kept
from intraslice.slicing.driver import slice_model

FORMAT = "6"
PARTS: dict[ModuleKind, str] = {"attention": "self_attn", "mlp": "mlp"}  # of a canonical layer
Measure = Literal["kl", "loss"]


@dataclass(frozen=True)
class ModuleDamage:
    """The damage of slicing one module, by window of the text, in nats per token."""

    layer: int
    module: ModuleKind
    ratio: float  # of the module that is sliced
    removed: int  # parameters
    divergences: tuple[float, ...]  # of KL from the dense model; in context it may be negative
    increases: tuple[float, ...]  # of the loss; negative where the sliced model is better

    def by_window(self, measure: Measure) -> tuple[float, ...]:
        """The damage in each window."""
        return self.divergences if measure == "kl" else self.increases

    def damage(self, measure: Measure) -> Estimate:
        """The mean over windows, with its standard error."""
        return mean_over_windows(self.by_window(measure))


@dataclass(frozen=True)
class Sensitivity:
    """Damages of all modules, layer by layer, attention first."""

    ratio: float | None  # of the sliced module; None in context, where ratios differ
    base_loss: float  # mean loss of the unchanged model (dense, or sliced in context), in nats per token
    tokens: int  # scored
    modules: tuple[ModuleDamage, ...]
    context: Estimate | None = None  # in context: KL of the sliced model from the dense one


def cut_alone(dense: LayerPlan, profile: LayerProfile, module: ModuleKind, ratio: float) -> LayerPlan:
    """The layer's plan with one module pruned by `ratio` and the other one dense."""
    if module == "mlp":
        return replace(dense, mlp_ratio=ratio, neurons=neurons_kept(profile.sizes.neurons, ratio))
    keep = round(profile.sizes.channels * (1 - ratio))
    heads = tuple(profile.table.alive[keep].nonzero().flatten().tolist())
    _, kv_heads, dim = profile.shapes[keep]
    return replace(dense, attention_ratio=ratio, heads=heads, kv_heads=kv_heads, dim=dim)


def slice_alone(
    model: PreTrainedModel, stats: CalibrationStats, layer: int, module: ModuleKind, ratio: float
) -> nn.Module:
    """The layer with one module sliced in one shot; no other layer is sliced."""
    plan = make_plan(stats.profile, SliceConfig(0.0, order="one-shot"))
    layers = list(plan.layers)
    layers[layer] = cut_alone(layers[layer], stats.profile.layers[layer], module, ratio)
    return slice_model(model, replace(plan, layers=tuple(layers)), stats, progress=False).model.layers[layer]


def with_module(layer: nn.Module, module: ModuleKind, source: nn.Module) -> nn.Module:
    """A copy of `layer` with one module replaced by that of the layer `source`."""
    return replace_modules(layer, {getattr(layer, PARTS[module]): getattr(source, PARTS[module])})


def measure_sensitivity(
    loaded: LoadedModel,
    stats: CalibrationStats,
    tokens: Int[Tensor, "windows window"],
    ratio: float = 0.3,
    *,
    progress: ProgressCallback | bool = True,
) -> Sensitivity:
    """Slice each module alone at `ratio`, in one shot, and measure the damage on `tokens`; `progress` counts modules.

    Finished modules are cached by model, calibration, tokens and ratio (see `measure_changes`). Raises UserError for a
    ratio that is not above 0 and at most 0.95.
    """
    path = _alone_path(loaded, stats, tokens, ratio)
    model = loaded.model
    changes = [
        Change(layer, partial(slice_alone, model, stats, layer, module, ratio)) for layer, module in modules_of(model)
    ]
    measurements = measure_changes(model, model, changes, tokens, path, "sensitivity", progress=progress)
    return _sensitivity(model, measurements, tokens, [ratio] * len(changes), 1)


def cached_sensitivity(
    loaded: LoadedModel, stats: CalibrationStats, tokens: Int[Tensor, "windows window"], ratio: float = 0.3
) -> Sensitivity | None:
    """The cached result of `measure_sensitivity` if all modules are measured, else None."""
    measurements = cached_changes(_alone_path(loaded, stats, tokens, ratio), 2 * len(stats.layers))
    if measurements is None:
        return None
    return _sensitivity(loaded.model, measurements, tokens, [ratio] * len(measurements.changed), 1)


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
    """Replace each module of a sliced model by the dense one, and measure the improvement on `tokens`.

    `sliced` is the model of `plan` by `method`; finished modules are cached by both (see `measure_changes`). `progress`
    counts modules.
    """
    dense = loaded.model
    changes = [
        Change(layer, partial(with_module, sliced.model.layers[layer], module, dense.model.layers[layer]))
        for layer, module in modules_of(dense)
    ]
    path = sensitivity_path(loaded, stats, tokens, "in context", method, plan.config, plan.layers)
    measurements = measure_changes(dense, sliced, changes, tokens, path, "sensitivity in context", progress=progress)
    ratios = [ratio for layer in plan.layers for ratio in (layer.attention_ratio, layer.mlp_ratio)]
    sensitivity = _sensitivity(sliced, measurements, tokens, ratios, -1)
    return replace(sensitivity, ratio=None, context=mean_over_windows(measurements.base.divergences))


def modules_of(model: PreTrainedModel) -> list[tuple[int, ModuleKind]]:
    """All modules, layer by layer, attention first."""
    return [(layer, module) for layer in range(len(model.model.layers)) for module in MODULE_KINDS]


def sensitivity_path(
    loaded: LoadedModel, stats: CalibrationStats, tokens: Int[Tensor, "windows window"], *what: object
) -> Path:
    """Cache path for measurements of this model, calibration and text; `what` distinguishes them."""
    attention_sum = stats.layers[-1].attention_sum  # identifies the calibration
    calibration = stats.tokens, stats.targets, attention_sum
    parts = (FORMAT, loaded.fingerprint, loaded.model.dtype, *calibration, tokens, *what)
    return cache_path("sensitivity", ".json", *parts)


def _alone_path(
    loaded: LoadedModel, stats: CalibrationStats, tokens: Int[Tensor, "windows window"], ratio: float
) -> Path:
    require_ratio(ratio)
    return sensitivity_path(loaded, stats, tokens, float(ratio))


def require_ratio(ratio: float) -> None:
    """Raise UserError unless the ratio of a single module is in range."""
    if not 0 < ratio <= 0.95:
        raise UserError(f"ratio must be above 0 and at most 0.95, got {ratio!r}")


def _sensitivity(
    base: PreTrainedModel, measurements: Measurements, tokens: Tensor, ratios: Sequence[float], sign: int
) -> Sensitivity:
    """The change of divergence and loss with each change, multiplied by `sign`."""

    def difference(changed: tuple[float, ...], unchanged: tuple[float, ...]) -> tuple[float, ...]:
        return tuple(sign * (value - before) for value, before in zip(changed, unchanged, strict=True))

    damages = []
    for (layer, module), changed, ratio in zip(modules_of(base), measurements.changed, ratios, strict=True):
        removed = sign * (parameters_in(base.model.layers[layer]) - changed.parameters)
        divergences = difference(changed.divergences, measurements.base.divergences)
        increases = difference(changed.losses, measurements.base.losses)
        damages.append(ModuleDamage(layer, module, ratio, removed, divergences, increases))
    loss = mean_over_windows(measurements.base.losses).value
    return Sensitivity(ratios[0], loss, tokens[:, 1:].numel(), tuple(damages))
