"""A size in bytes as the target: the plan whose weights, and key/value cache, just fit. Nothing is sliced for it."""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from dataclasses import replace
from typing import NamedTuple, cast

from intraslice.calibration.stats import CalibrationStats
from intraslice.checkpoints.planned_bytes import DTYPES, PlannedFolder, PlannedGGUF
from intraslice.checkpoints.to_gguf import GGUF_TYPES
from intraslice.core.checks import integer, one_of, quoted
from intraslice.core.config import MAX_SPARSITY
from intraslice.core.errors import UserError
from intraslice.distributed import all_gather
from intraslice.loading import LoadedModel
from intraslice.methods.registry import METHODS, Plan, plan_by
from intraslice.modeling.hidden_states import require_length
from intraslice.planning.ratios import SlicePlan
from intraslice.records import Recipe

UNITS = {"kb": 10**3, "mb": 10**6, "gb": 10**9, "kib": 2**10, "mib": 2**20, "gib": 2**30}
STEPS, BISECTIONS = 80, 14  # of sparsities: a grid, as padding makes some plans larger than those of less sparsity
ENOUGH = 0.985  # of the target


class SizeTarget(NamedTuple):
    """At most so many bytes for the weights, stored as `kind`, and the key/value cache of `context` tokens.

    `kind` is a GGUF type, for the GGUF file; or a dtype, by default the model's, for the folder's model.safetensors.
    """

    bytes: int
    kind: str | None
    context: int


def parse_size(text: str, context: int = 0) -> SizeTarget:
    """Parse a size such as "200 MB" or, with the type of the stored weights, "200 MB q8_0". Raises UserError."""
    match = re.fullmatch(r"\s*(\d{1,9}(?:\.\d{0,9})?)\s*([kmg]i?b)(?:\s+(\w+))?\s*", str(text), re.IGNORECASE)
    if match is None:
        raise UserError(
            "size must be a number of kB, MB, GB, KiB, MiB or GiB, with or without the type of the weights, such as "
            "200 MB or 200 MB q8_0, got {value}",
            value=quoted(text),
        )
    if match[3] is not None:
        one_of("the type of the weights", match[3], (*DTYPES, *GGUF_TYPES))
    return SizeTarget(int(float(match[1]) * UNITS[match[2].lower()]), match[3], integer("context", context, 0))


def plan_recipe(
    recipe: Recipe,
    loaded: LoadedModel,
    stats: CalibrationStats | None,
    slicing: float | None = None,
    size: SizeTarget | None = None,
) -> tuple[Plan, Recipe]:
    """A recipe's plan, the same in all processes, and the recipe; with a size, at the sparsity that meets it.

    Raises UserError as `plan_by` does, and for a size that no plan meets.
    """

    def plan_at(sparsity: float) -> Plan:
        return plan_by(recipe.method, loaded.model, stats, replace(recipe.slicing, sparsity=sparsity), slicing)

    if size is None:
        plan = plan_at(recipe.slicing.sparsity)
    elif METHODS[recipe.method].slices_residual_stream:
        raise UserError("a size cannot be the target of method {method}; use sparsity instead", method=recipe.method)
    else:
        at = cast(Callable[[float], SlicePlan], plan_at)
        size = size._replace(kind=size.kind or recipe.dtype)
        plan = plan_within(size, loaded, at, min(MAX_SPARSITY, recipe.slicing.cap), recipe.method)
    plan = all_gather([plan])[0]  # one plan for all processes, as machines may round differently
    if isinstance(plan, SlicePlan):
        recipe = replace(recipe, slicing=replace(recipe.slicing, sparsity=plan.config.sparsity))
    return plan, recipe


def _bytes_of(size: SizeTarget, loaded: LoadedModel, method: str) -> Callable[[SlicePlan], int]:
    """The bytes of a plan that count. Raises UserError if the model has no such file or context."""
    planned: PlannedFolder | PlannedGGUF
    if size.kind in GGUF_TYPES:
        planned = PlannedGGUF(loaded.model, loaded.tokenizer, size.kind)
    else:
        assert size.kind is not None
        planned = PlannedFolder(loaded.model, size.kind, METHODS[method].narrows_queries)
    if not size.context:
        return planned.file
    require_length(size.context, loaded.model.config)
    return lambda plan: planned.file(plan) + planned.cache(plan, size.context)


def plan_within(
    size: SizeTarget,
    loaded: LoadedModel,
    plan_at: Callable[[float], SlicePlan],
    highest: float,
    method: str = "intraslice",
) -> SlicePlan:
    """The plan of the smallest sparsity that has at least `ENOUGH` of the target, and not more; else the largest below.

    Args:
        size: the target, with its kind.
        plan_at: the plan of a sparsity; may raise UserError where there is none.
        highest: the largest sparsity that is tried.

    Raises UserError for a target that no sparsity reaches, and if the model has no such file or context.
    """
    target, bytes_of = size.bytes, _bytes_of(size, loaded, method)
    plans: dict[float, tuple[int, SlicePlan]] = {}  # by sparsity
    impossible: list[UserError] = []  # with these locks or shapes

    def fits(sparsity: float) -> bool:
        try:
            plan = plan_at(sparsity)
        except UserError as error:
            impossible.append(error)
            return False
        plans[sparsity] = bytes_of(plan), plan
        return plans[sparsity][0] <= target

    grid = [round(highest * step / STEPS, 6) for step in range(STEPS + 1)]
    fitting = [step for step, sparsity in enumerate(grid) if fits(sparsity)]
    if not plans:
        raise impossible[0]
    if not fitting:
        smallest = math.ceil(min(count for count, _ in plans.values()) / 1e3) / 1e3
        raise UserError(
            "the size of {target:,.3f} MB cannot be reached: the smallest that these settings reach is "
            "{smallest:,.3f} MB; choose that or more, a smaller type of weights or context, or a higher cap",
            target=target / 1e6,
            smallest=smallest,
        )
    low, high = grid[max(fitting[0] - 1, 0)], grid[fitting[0]]
    for _ in range(BISECTIONS):
        middle = round((low + high) / 2, 6)
        low, high = (low, middle) if fits(middle) else (middle, high)
    below = {sparsity: count for sparsity, (count, _) in plans.items() if count <= target}
    enough = [sparsity for sparsity, count in below.items() if count >= ENOUGH * target]
    return plans[min(enough) if enough else max(below, key=lambda sparsity: (below[sparsity], -sparsity))][1]
