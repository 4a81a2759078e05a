"""Plans of other methods: bisection to a budget, and one width for the whole residual stream. Pure."""

from collections.abc import Callable
from dataclasses import dataclass

from intraslice.core.config import NO_RECOVERY, Order
from intraslice.core.errors import UserError
from intraslice.planning.sizes import Parameters

BISECTION_STEPS = 48
TOLERANCE = 0.01  # allowed deviation of a plan, relative to the target number of parameters


def bisect_count(count: Callable[[float], int], target: float, high: float) -> float:
    """The argument from 0 to `high` at which a decreasing parameter count is nearest to `target`, by bisection.

    Raises UserError where no count in this range is within one per cent of `target`.
    """
    low = 0.0
    if not count(high) - TOLERANCE * target <= target <= count(low) + TOLERANCE * target:
        raise UserError(
            "the sparsity cannot be reached: the plan would have to keep {target:,.0f} parameters of the decoder "
            "layers, but only {least:,} to {most:,} are possible; raise the cap, unlock modules, or change "
            "the sparsity",
            target=target,
            least=count(high),
            most=count(low),
        )
    for _ in range(BISECTION_STEPS):
        middle = (low + high) / 2
        low, high = (middle, high) if count(middle) > target else (low, middle)
    return min((low, high), key=lambda argument: abs(count(argument) - target))


WIDTH_MULTIPLE = 8  # D' is rounded down to a multiple of it, as published


@dataclass(frozen=True)
class CrossModulePlan:
    """The width D' and the resulting parameter counts, including all shortcut matrices."""

    hidden: int
    width: int  # D'
    requested: float | None  # target sparsity; None when the slicing fraction was given
    parameters: Parameters  # a tied head stays tied
    order: Order  # "one-shot": the bases come from the dense model's moments
    untied_total: int  # sliced total with untied embeddings, as in SliceGPT's own code
    recovery: str = NO_RECOVERY  # after slicing
    epochs: int = 1  # of the recovery

    @property
    def slicing(self) -> float:
        """The fraction of the residual stream's axes that is cut (SliceGPT's percentage)."""
        return 1 - self.width / self.hidden

    @property
    def removed_fraction(self) -> float:
        return self.parameters.removed_fraction

    @property
    def note(self) -> str:
        """A sentence on the difference between target and actual sparsity, empty if there is none."""
        removed = self.removed_fraction
        if removed < 0:
            return f"Slicing {self.slicing:.1%} adds {-removed:.1%} to the decoder: the shortcuts outweigh the cut."
        if self.requested is not None and abs(removed - self.requested) > 5e-4:
            return (
                f"No width that is a multiple of {WIDTH_MULTIPLE} removes {self.requested:.1%} of the decoder; "
                f"the nearest, {self.width} of {self.hidden}, removes {removed:.1%}."
            )
        return ""
