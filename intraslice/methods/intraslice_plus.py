"""IntraSlice+: the sizes of IntraSlice, output maps that follow the dense residual stream, and a short distillation."""

from __future__ import annotations

from collections.abc import Generator

from transformers import PreTrainedModel

from intraslice.calibration.stats import CalibrationStats
from intraslice.methods.intraslice import plan_intraslice
from intraslice.methods.plus_align import slice_aligned
from intraslice.methods.plus_distil import distil
from intraslice.methods.registry import METHODS, Method, Tokens
from intraslice.planning.ratios import SlicePlan
from intraslice.progress import Progress


def slice_plus(
    model: PreTrainedModel, plan: SlicePlan, stats: CalibrationStats, tokens: Tokens
) -> Generator[Progress, None, PreTrainedModel]:
    """Fit to the calibration's tokens, then distil on all that are given, for as many epochs as the plan's config says.

    Raises NumericalError where either goes astray, and UserError where training does not fit into memory.
    """
    sliced = yield from slice_aligned(model, plan, stats, tokens[: stats.tokens // tokens.shape[1]])
    return (yield from distil(model, sliced, tokens, plan.config.epochs))


METHODS.register(
    Method(
        "intraslice+",
        "IntraSlice+",
        "the same sizes, output maps fitted to the dense residual stream, then all weights distilled for a moment",
        plan_intraslice,
        slice_plus,
        uses_estimator=True,
        trains=True,
        reads_tokens=True,
    )
)
