"""What a slicing method is, and how one is called by its name, at equal removed parameters."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from jaxtyping import Int
from torch import Tensor
from transformers import PreTrainedModel

from intraslice.calibration.stats import CalibrationStats
from intraslice.core.config import SliceConfig
from intraslice.core.errors import UserError
from intraslice.core.progress import ProgressCallback
from intraslice.core.registry import Registry
from intraslice.distributed.sharing import size
from intraslice.modeling.offload import is_offloaded
from intraslice.planning.crossmodule_plan import CrossModulePlan
from intraslice.planning.ratios import SlicePlan

Plan = SlicePlan | CrossModulePlan
Tokens = Int[Tensor, "sequences length"]


@dataclass(frozen=True)
class Method:
    """One way to slice a dense model, which it leaves untouched.

    `plan(model, stats, config)` says what goes so that `config.sparsity` of the decoder's parameters do, and
    `slice(model, plan, stats, tokens, progress=...)` builds that model, reporting progress by layer. `tokens` are the
    calibration's, which for a method that trains more may follow.
    """

    name: str
    label: str
    explanation: str
    plan: Callable[[PreTrainedModel, CalibrationStats, SliceConfig], Plan]
    slice: Callable[..., PreTrainedModel]
    uses_estimator: bool = False  # ratios come from the config's ratio estimator
    uses_order: bool = False  # slices in the config's order, refining where it says so
    trains: bool = False  # for the config's epochs, on the calibration's tokens and any that are given beyond them
    uses_statistics: bool = True  # else `stats` may be None in the sequential order, whose moments are its own
    layer_by_layer: bool = False  # slices models whose layers are kept away until they are used
    uses_shapes: bool = True  # the config's shapes bind it
    has_format: bool = True  # else its models can be measured, but not written
    reads_tokens: bool = False  # runs the model on the calibration tokens, whatever the order
    # From a share of the residual stream's axes, where the method cuts those.
    plan_of_width: Callable[[PreTrainedModel, float, SliceConfig], Plan] | None = None


METHODS: Registry[Method] = Registry("method")


def uses_estimator(method: str) -> bool:
    """Whether ratios of this method come from a ratio estimator."""
    return METHODS.require(method).uses_estimator


def uses_statistics(method: str, config: SliceConfig) -> bool:
    """Whether the method reads a calibration's statistics, not only its tokens."""
    entry = METHODS.require(method)
    return entry.uses_statistics or (entry.uses_order and config.order == "one-shot")


def require_shareable(method: str, config: SliceConfig) -> None:
    """Raises UserError where several processes are to share what the method does in one alone."""
    entry = METHODS.require(method)
    trains = entry.reads_tokens or (entry.uses_order and config.iterative)
    if trains and size() > 1:
        what = method if entry.reads_tokens else f"{method} with iterative refinement"
        raise UserError(
            f"{what} trains on all tokens in one process; start one, or take intraslice without --iterative"
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
    if slicing is not None and entry.plan_of_width is None:
        raise UserError(
            f"slicing {slicing:g} is a share of the residual stream, which {method} leaves alone; use sparsity"
        )
    require_shareable(method, config)
    if not entry.layer_by_layer and is_offloaded(model):
        raise UserError(f"{method} reads all layers at once; load the model without a device map, or take intraslice")
    return entry.plan(model, stats, config) if slicing is None else entry.plan_of_width(model, slicing, config)


def slice_by(
    method: str,
    model: PreTrainedModel,
    plan: Plan,
    stats: CalibrationStats | None,
    tokens: Tokens,
    *,
    progress: ProgressCallback | bool = True,
) -> PreTrainedModel:
    """Build the model of `plan_by`. The dense model is untouched."""
    return METHODS.require(method).slice(model, plan, stats, tokens, progress=progress)
