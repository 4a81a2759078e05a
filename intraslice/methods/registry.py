"""Every method under one roof: plan and slice by name, at equal removed parameters."""

from __future__ import annotations

from collections.abc import Generator
from typing import Literal, get_args

from jaxtyping import Int
from torch import Tensor
from transformers import PreTrainedModel

from intraslice.calibration.stats import CalibrationStats
from intraslice.config import SliceConfig
from intraslice.errors import UserError
from intraslice.methods.baselines import Baseline, plan_baseline, slice_baseline
from intraslice.methods.crossmodule import CrossModulePlan, plan_crossmodule, slice_crossmodule
from intraslice.methods.plus_align import slice_aligned
from intraslice.methods.plus_distil import distil
from intraslice.modeling.offload import is_offloaded
from intraslice.planning.ratios import SlicePlan, make_plan
from intraslice.progress import Progress
from intraslice.slicing.driver import slice_model

Method = Literal["intraslice", "intraslice+", "crossmodule", "magnitude", "wanda", "flap"]
METHODS: tuple[Method, ...] = get_args(Method)
Plan = SlicePlan | CrossModulePlan


def uses_estimator(method: Method) -> bool:
    """Whether ratios of this method come from a ratio estimator."""
    return method in ("intraslice", "intraslice+")


def uses_statistics(method: Method) -> bool:
    """Whether the method reads a calibration; the cross-module one takes its own moments of the tokens."""
    return method != "crossmodule"


def plan_by(
    method: Method,
    model: PreTrainedModel,
    stats: CalibrationStats | None,
    config: SliceConfig,
    slicing: float | None = None,
) -> Plan:
    """What the method would remove to lose `config.sparsity` of the decoder's parameters.

    `slicing` asks the cross-module method for a share of the residual stream's axes instead; only that method does
    without `stats`. Raises UserError for what the method cannot do.
    """
    if method not in METHODS:
        raise UserError(f"method is {method!r}; wanted one of {', '.join(METHODS)}")
    if slicing is not None and method != "crossmodule":
        raise UserError(
            f"slicing {slicing:g} is a share of the residual stream, which {method} leaves alone; use sparsity"
        )
    if method != "intraslice" and is_offloaded(model):
        raise UserError(f"{method} reads all layers at once; load the model without a device map, or take intraslice")
    if method == "crossmodule":
        return (
            plan_crossmodule(model, slicing=slicing)
            if slicing is not None
            else plan_crossmodule(model, config.sparsity)
        )
    if uses_estimator(method):
        return make_plan(stats.profile_for(config), config)
    return plan_baseline(model, stats, method, config)


def slice_by(
    method: Method,
    model: PreTrainedModel,
    plan: Plan,
    stats: CalibrationStats | None,
    tokens: Int[Tensor, "sequences length"],
) -> Generator[Progress, None, PreTrainedModel]:
    """Build the model of `plan_by`; yields progress by layer. The dense model is untouched."""
    if isinstance(plan, CrossModulePlan):
        return (yield from slice_crossmodule(model, plan, tokens))
    if method in get_args(Baseline):
        return (yield from slice_baseline(model, plan, stats, method))
    if method == "intraslice+":
        sliced = yield from slice_aligned(model, plan, stats, tokens)
        return (yield from distil(model, sliced, tokens, plan.config.epochs))
    return (yield from slice_model(model, plan, stats, tokens))
