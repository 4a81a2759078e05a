"""The cross-module plan that is comparable with an IntraSlice plan."""

from __future__ import annotations

from transformers import PreTrainedModel

from intraslice.methods.crossmodule import plan_crossmodule
from intraslice.planning.baseline_plans import WIDTH_MULTIPLE, CrossModulePlan

from ..i18n.language import LazyString, lazy_gettext

TOLERANCE = 0.02  # fraction of the layers' parameters by which comparable plans may differ


def nearest_plan(model: PreTrainedModel, sparsity: float) -> tuple[CrossModulePlan, bool]:
    """The cross-module plan whose actual sparsity is nearest to `sparsity`, and whether the two are comparable."""
    plan = plan_crossmodule(model, sparsity)
    return plan, abs(plan.removed_fraction - sparsity) <= TOLERANCE


def note_of(plan: CrossModulePlan) -> LazyString:
    """The reason why the plan misses its target sparsity."""
    if plan.removed_fraction < 0:
        return lazy_gettext(
            "Slicing {slicing:.1%} of the width adds {added:.1%} to the layer parameters: the shortcut matrices have "
            "more parameters than are removed.",
            slicing=plan.slicing,
            added=-plan.removed_fraction,
        )
    return lazy_gettext(
        "No width that is a multiple of {multiple} removes {target:.1%} of the layer parameters; the nearest, {width} "
        "of {hidden}, removes {removed:.1%}.",
        multiple=WIDTH_MULTIPLE,
        target=plan.requested,
        width=plan.width,
        hidden=plan.hidden,
        removed=plan.removed_fraction,
    )
