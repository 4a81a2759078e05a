"""IntraSlice+: the one-shot slice of IntraSlice, all of whose matrices are then distilled for a moment."""

from __future__ import annotations

from collections.abc import Generator
from dataclasses import replace

from transformers import PreTrainedModel

from intraslice.calibration.stats import CalibrationStats
from intraslice.core.progress import Progress
from intraslice.methods.intraslice import plan_intraslice
from intraslice.methods.plus_distil import distil
from intraslice.methods.registry import METHODS, Method, Tokens
from intraslice.planning.ratios import SlicePlan
from intraslice.slicing.driver import slice_model


def slice_plus(
    model: PreTrainedModel, plan: SlicePlan, stats: CalibrationStats, tokens: Tokens
) -> Generator[Progress, None, PreTrainedModel]:
    """Slice in one shot, then distil on the tokens, for as many epochs as the plan's config says.

    Raises NumericalError where either goes astray, and UserError where training does not fit into memory.
    """
    sliced = yield from slice_model(model, replace(plan, config=replace(plan.config, order="one-shot")), stats)
    return (yield from distil(model, sliced, tokens, plan.config.epochs))


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
