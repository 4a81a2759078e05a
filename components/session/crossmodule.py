"""Which cross-module plan is an equal comparison."""

from __future__ import annotations

from transformers import PreTrainedModel

from intraslice.methods.crossmodule import plan_crossmodule
from intraslice.planning.crossmodule_plan import CrossModulePlan

TOLERANCE = 0.02  # of the layers' parameters: what is further apart is no equal removal


def nearest_plan(model: PreTrainedModel, sparsity: float) -> tuple[CrossModulePlan, bool]:
    """The cross-module plan that removes nearest to `sparsity`, and whether that is near enough to compare."""
    plan = plan_crossmodule(model, sparsity)
    return plan, abs(plan.removed_fraction - sparsity) <= TOLERANCE
