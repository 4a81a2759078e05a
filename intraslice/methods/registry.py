"""Slicing methods: what one is, and how one is called by its name, at equal removed parameters."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any, ClassVar, Generic, TypeVar, cast

from jaxtyping import Int
from torch import Tensor
from transformers import PreTrainedModel

from intraslice.calibration.stats import CalibrationStats
from intraslice.core.config import NO_RECOVERY, SliceConfig
from intraslice.core.errors import UserError
from intraslice.core.progress import ProgressCallback, progress_callback
from intraslice.core.registry import Registry
from intraslice.distributed.sharing import size
from intraslice.modeling.offload import is_offloaded
from intraslice.planning.crossmodule_plan import CrossModulePlan
from intraslice.planning.ratios import SlicePlan
from intraslice.recovery.registry import recover, require_trainable

Plan = SlicePlan | CrossModulePlan
PlanType = TypeVar("PlanType", bound=Plan)
Tokens = Int[Tensor, "sequences length"]


class SlicingMethod(ABC, Generic[PlanType]):
    """One way to slice a dense model, which it leaves untouched. A subclass is registered as an instance in `METHODS`.

    The class attributes say what a method needs and can do; a subclass sets those that differ. Results are cached by
    the method's name, so equal arguments must give equal models.
    """

    name: ClassVar[str]  # one word
    label: ClassVar[str]  # on charts and buttons
    explanation: ClassVar[str]  # one line of help

    uses_estimator: ClassVar[bool] = False  # ratios come from the config's estimator
    uses_order: ClassVar[bool] = False  # follows the config's order, and its `iterative`
    uses_shapes: ClassVar[bool] = True  # follows the config's shapes
    supports_offload: ClassVar[bool] = False  # slices models with offloaded layers
    can_be_saved: ClassVar[bool] = True  # a saved folder can hold its models

    @abstractmethod
    def plan(self, model: PreTrainedModel, stats: CalibrationStats, config: SliceConfig) -> PlanType:
        """What to remove, so that the decoder layers lose `config.sparsity` of their parameters.

        Raises UserError for a sparsity that is out of reach.
        """

    @abstractmethod
    def slice(
        self,
        model: PreTrainedModel,
        plan: PlanType,
        stats: CalibrationStats,
        tokens: Tokens,
        *,
        progress: ProgressCallback | bool = True,
    ) -> PreTrainedModel:
        """Build the model of `plan`, without any recovery. `tokens` are those of the calibration."""

    def plan_width(self, model: PreTrainedModel, slicing: float, config: SliceConfig) -> PlanType:
        """What to remove, so that the residual stream loses the fraction `slicing` of its axes.

        Raises UserError where the method leaves the residual stream alone, which is the default.
        """
        raise UserError(
            f"slicing {slicing:g} is a share of the residual stream, which {self.name} leaves alone; use sparsity"
        )

    def needs_statistics(self, config: SliceConfig) -> bool:
        """Whether plan and slice read `stats`. If not, `stats` may be None."""
        return True

    def recovery(self, config: SliceConfig) -> str:
        """The recovery that follows slicing, or "none"."""
        return config.recovery


METHODS: Registry[SlicingMethod[Any]] = Registry("method")


def require_shareable(method: str, config: SliceConfig) -> None:
    """Raises UserError where several processes are to share gradient steps, which one process takes on all tokens."""
    entry = METHODS.require(method)
    recovery, refines = entry.recovery(config), entry.uses_order and config.iterative
    if size() > 1 and (refines or recovery != NO_RECOVERY):
        what = "iterative refinement" if refines else f"recovery {recovery}"
        raise UserError(
            f"{method} with {what} trains on all tokens in one process; start one process, or leave the training out"
        )


def plan_by(
    method: str,
    model: PreTrainedModel,
    stats: CalibrationStats | None,
    config: SliceConfig,
    slicing: float | None = None,
) -> Plan:
    """What the method would remove to lose `config.sparsity` of the decoder's parameters.

    `slicing` asks the cross-module method for a share of the residual stream's axes instead. Raises UserError for what
    the method cannot do.
    """
    entry = METHODS.require(method)
    require_shareable(method, config)
    if not entry.supports_offload and is_offloaded(model):
        raise UserError(f"{method} reads all layers at once; load the model without a device map, or take intraslice")
    if entry.recovery(config) != NO_RECOVERY:
        require_trainable(model)
    stats = cast(CalibrationStats, stats)
    return entry.plan(model, stats, config) if slicing is None else entry.plan_width(model, slicing, config)


def slice_by(
    method: str,
    model: PreTrainedModel,
    plan: Plan,
    stats: CalibrationStats | None,
    tokens: Tokens,
    training_tokens: Int[Tensor, "more length"] | None = None,
    *,
    progress: ProgressCallback | bool = True,
) -> PreTrainedModel:
    """Build the model of `plan_by`, and recover it where the plan says so. The dense model is untouched.

    `tokens` are those of the calibration. A recovery trains on `training_tokens`, by default on `tokens`.
    """
    report = progress_callback(progress)
    sliced = METHODS.require(method).slice(model, plan, cast(CalibrationStats, stats), tokens, progress=report)
    if plan.recovery == NO_RECOVERY:
        return sliced
    read = tokens if training_tokens is None else training_tokens
    return recover(model, sliced, read, plan.recovery, plan.epochs, progress=report)
