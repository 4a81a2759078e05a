"""Which cross-module plan is an equal comparison."""

from __future__ import annotations

from transformers import PreTrainedModel

from components.i18n.language import LazyString, lazy_gettext
from intraslice.methods.crossmodule import plan_crossmodule
from intraslice.planning.crossmodule_plan import MULTIPLE, CrossModulePlan

TOLERANCE = 0.02  # of the layers' parameters: what is further apart is no equal removal


def nearest_plan(model: PreTrainedModel, sparsity: float) -> tuple[CrossModulePlan, bool]:
    """The cross-module plan that removes nearest to `sparsity`, and whether that is near enough to compare."""
    plan = plan_crossmodule(model, sparsity)
    return plan, abs(plan.removed_fraction - sparsity) <= TOLERANCE


def note_of(plan: CrossModulePlan) -> LazyString:
    """The plan's own note, in the page's words."""
    if plan.removed_fraction < 0:
        return lazy_gettext(
            "Slicing {slicing:.1%} of the width adds {added:.1%} to the decoder: the shortcut matrices have "
            "more parameters than are removed.",
            slicing=plan.slicing,
            added=-plan.removed_fraction,
        )
    return lazy_gettext(
        "No width that is a multiple of {multiple} removes {target:.1%} of the decoder; the nearest, {width} "
        "of {hidden}, removes {removed:.1%}.",
        multiple=MULTIPLE,
        target=plan.asked,
        width=plan.width,
        hidden=plan.hidden,
        removed=plan.removed_fraction,
    )
