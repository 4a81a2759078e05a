"""IntraSlice+: the one-shot slice of IntraSlice, all of whose matrices are then distilled for a moment."""

from __future__ import annotations

from dataclasses import replace

from transformers import PreTrainedModel

from intraslice.calibration.stats import CalibrationStats
from intraslice.core.progress import ProgressCallback, progress_callback
from intraslice.methods.intraslice import plan_intraslice
from intraslice.methods.registry import METHODS, Method, Tokens
from intraslice.planning.ratios import SlicePlan
from intraslice.recovery.distill import distil
from intraslice.slicing.driver import slice_model


def slice_plus(
    model: PreTrainedModel,
    plan: SlicePlan,
    stats: CalibrationStats,
    tokens: Tokens,
    *,
    progress: ProgressCallback | bool = True,
) -> PreTrainedModel:
    """Slice in one shot, then distil on the tokens, for as many epochs as the plan's config says.

    Raises NumericalError where either goes astray, and UserError where training does not fit into memory.
    """
    report, one_shot = progress_callback(progress), replace(plan.config, order="one-shot")
    sliced = slice_model(model, replace(plan, config=one_shot), stats, progress=report)
    return distil(model, sliced, tokens, plan.config.epochs, progress=report)


METHODS.register(
    Method(
        "intraslice+",
        "IntraSlice+",
        "the same sizes, all weights then distilled from the dense model and the text for a moment",
        plan_intraslice,
        slice_plus,
        uses_estimator=True,
        trains=True,
        reads_tokens=True,
    )
)
