"""The base classes of slicing methods, and `plan_by` and `slice_by`, which run a method by its name."""

from abc import ABC, abstractmethod
from typing import Any, ClassVar, Generic, TypeVar, cast

import torch
from jaxtyping import Int
from torch import Tensor, nn
from transformers import PreTrainedModel

from intraslice.calibration.driver import calibrate
from intraslice.calibration.stats import CalibrationStats, LayerStats
from intraslice.core.config import NO_RECOVERY, SliceConfig, Targets
from intraslice.core.errors import Message, UserError
from intraslice.core.progress import Progress, ProgressOption, progress_callback
from intraslice.core.registry import Registry
from intraslice.loading import LoadedModel
from intraslice.modeling.families import Block, blocks
from intraslice.modeling.hidden_states import Tokens, require_model
from intraslice.modeling.offload import is_offloaded
from intraslice.modeling.surgery import replace_modules
from intraslice.planning.baseline_plans import CrossModulePlan
from intraslice.planning.ratios import SlicePlan
from intraslice.planning.sizes import LayerPlan
from intraslice.recovery.registry import recover, require_trainable, training_bytes

Plan = SlicePlan | CrossModulePlan
PlanType = TypeVar("PlanType", bound=Plan)


class SlicingMethod(ABC, Generic[PlanType]):
    """One way to slice a dense model, without changing it. An instance of each subclass is registered in `METHODS`.

    The class attributes declare what a method supports; subclasses override the defaults. Results are cached by the
    method's name, so equal arguments must produce equal models.
    """

    name: ClassVar[str]  # one word
    label: ClassVar[str]  # on charts and buttons
    explanation: ClassVar[str]  # one line of help

    uses_estimator: ClassVar[bool] = False  # ratios come from the estimator of the config
    uses_bias: ClassVar[bool] = False  # uses `bias` of the config without an estimator
    uses_order: ClassVar[bool] = False  # uses `order` of the config
    uses_shapes: ClassVar[bool] = True  # uses `shapes` of the config
    uses_cap: ClassVar[bool] = True  # the cap of the config limits its ratios
    slices_residual_stream: ClassVar[bool] = False  # instead of single modules, whose ratios can be locked
    narrows_queries: ClassVar[bool] = True  # queries and keys become as narrow as the values
    supports_offload: ClassVar[bool] = False  # slices models with offloaded layers
    # Labels of the gradients of the calibration that the method needs; None: those that the calibration's config asks
    # for.
    targets: ClassVar[Targets | None] = None
    measures_auto: ClassVar[bool] = True  # the estimator auto is chosen by measuring; otherwise it is pca

    def configured(self, config: SliceConfig) -> SliceConfig:
        """Return `config` with the settings that this method fixes."""
        return config

    @abstractmethod
    def plan(self, model: PreTrainedModel, stats: CalibrationStats, config: SliceConfig) -> PlanType:
        """A plan that removes `config.sparsity` of the decoder layers. Raises UserError if it is out of reach."""

    @abstractmethod
    def slice(
        self,
        model: PreTrainedModel,
        plan: PlanType,
        stats: CalibrationStats,
        tokens: Tokens,
        *,
        progress: ProgressOption = True,
    ) -> PreTrainedModel:
        """Build the model of `plan`, without recovery. `tokens` are those of the calibration."""

    def plan_width(self, model: PreTrainedModel, slicing: float, config: SliceConfig) -> PlanType:
        """A plan that removes the fraction `slicing` of the residual stream's axes, if the method slices it."""
        raise NotImplementedError(f"method {self.name} slices the residual stream; expected its plan_width")

    def require_slicing(self, slicing: float) -> None:
        """Raise UserError unless the method can remove the fraction `slicing` of the residual stream's axes."""
        if not self.slices_residual_stream:
            raise UserError(
                f"method {self.name} does not slice the residual stream, got slicing {slicing:g}; use sparsity instead"
            )
        if not 0 <= slicing < 1:
            raise UserError(
                "{name} must be at least 0 and below 1, got {value}", name=Message("slicing"), value=slicing
            )

    def require_estimator(self) -> None:
        """Raise UserError unless the method's ratios come from an estimator, as a search of ratios needs."""
        if not self.uses_estimator:
            raise UserError(f"a search improves an estimator's ratios, which method {self.name} does not use")

    def needs_statistics(self, config: SliceConfig) -> bool:
        """Whether `plan` and `slice` use `stats`, which may be None otherwise."""
        return True

    @property
    def unused(self) -> list[str]:
        """The fields of the config that this method does not use."""
        unused = [] if self.uses_estimator else ["estimator", "head_fraction", "gradient_group"]
        unused += [] if self.uses_estimator or self.uses_bias else ["bias"]
        unused += [] if self.uses_order else ["order"]
        unused += [] if self.uses_shapes else ["shapes"]
        unused += [] if self.uses_cap else ["cap"]
        return unused + (["locked"] if self.slices_residual_stream else [])

    def recovery(self, config: SliceConfig) -> str:
        """The recovery after slicing, or "none"."""
        return config.recovery


class OneShotMethod(SlicingMethod[SlicePlan]):
    """Slices layer by layer; a subclass implements `parts`."""

    @abstractmethod
    def parts(self, block: Block, plan: LayerPlan, stats: LayerStats, tokens: int) -> dict[nn.Module, nn.Module]:
        """Replacements of the layer's modules; `stats` are sums over `tokens` tokens."""

    @torch.no_grad()
    def slice(
        self,
        model: PreTrainedModel,
        plan: SlicePlan,
        stats: CalibrationStats,
        tokens: Tokens,
        *,
        progress: ProgressOption = True,
    ) -> PreTrainedModel:
        """Build the model from the dense statistics alone."""
        report, parts = progress_callback(progress), dict[nn.Module, nn.Module]()
        report(Progress("slice", 0, len(plan.layers)))
        for done, (block, layer, moments) in enumerate(zip(blocks(model), plan.layers, stats.layers, strict=True), 1):
            parts |= self.parts(block, layer, moments, stats.tokens)
            report(Progress("slice", done, len(plan.layers)))
        return replace_modules(model, parts)


METHODS: Registry[SlicingMethod[Any]] = Registry("method")


def calibration_for(
    method: str,
    loaded: LoadedModel,
    stats: CalibrationStats,
    tokens: Tokens,
    *,
    progress: ProgressOption = True,
) -> CalibrationStats:
    """Return `stats`, or the calibration on the same `tokens` with gradients on the labels that the method needs.

    Raises as `calibrate`.
    """
    targets = METHODS.require(method).targets
    if targets in (None, stats.targets):
        return stats
    return calibrate(loaded, tokens, targets, progress=progress)


def plan_by(
    method: str,
    model: PreTrainedModel,
    stats: CalibrationStats | None,
    config: SliceConfig,
    slicing: float | None = None,
) -> Plan:
    """The method's plan to remove `config.sparsity` of the decoder's parameters.

    With `slicing`, the cross-module method removes that fraction of the residual stream's axes instead. Raises
    UserError for settings that the method does not support.
    """
    require_model(model)
    entry = METHODS.require(method)
    if not entry.supports_offload and is_offloaded(model):
        raise UserError(
            f"method {method} requires all layers in memory; load the model without a device map, or use intraslice"
        )
    if not entry.uses_estimator and len(config.ratio_locks) < len(config.locked) and "locked" not in entry.unused:
        raise UserError(f"method {method} has no locks of heads or neurons; lock ratios, or use intraslice")
    if entry.recovery(config) != NO_RECOVERY:
        require_trainable(model)
    stats = cast(CalibrationStats, stats)
    if slicing is None:
        return entry.plan(model, stats, config)
    entry.require_slicing(slicing)
    return entry.plan_width(model, slicing, config)


def slice_by(
    method: str,
    model: PreTrainedModel,
    plan: Plan,
    stats: CalibrationStats | None,
    tokens: Tokens,
    training_tokens: Int[Tensor, "more length"] | None = None,
    *,
    progress: ProgressOption = True,
) -> PreTrainedModel:
    """Build the model of a plan from `plan_by`, with the plan's recovery. The dense model is not changed.

    `tokens` are those of the calibration. A recovery trains on `training_tokens`, by default on `tokens`.
    """
    report = progress_callback(progress)
    sliced = METHODS.require(method).slice(model, plan, cast(CalibrationStats, stats), tokens, progress=report)
    text = tokens if training_tokens is None else training_tokens
    return recover(model, sliced, text, plan.recovery, plan.epochs, progress=report)


def slice_bytes(model: PreTrainedModel, plan: Plan, length: int) -> int:
    """Memory that `slice_by` takes, at most, besides model and statistics; a recovery's sequences have `length`."""
    weights = sum(parameter.nbytes for parameter in model.parameters())
    return weights + training_bytes(plan.recovery, model, plan.parameters.sliced_decoder, length)
