"""A plan of the cross-module contrast (SliceGPT, arXiv 2401.15024): one width for the whole residual stream. Pure."""

from __future__ import annotations

from dataclasses import dataclass

from intraslice.core.config import NO_RECOVERY, Order
from intraslice.planning.sizes import Parameters

MULTIPLE = 8  # D' is rounded down to a multiple of it, as published


@dataclass(frozen=True)
class CrossModulePlan:
    """Which D' is used and what that removes, every shortcut matrix counted."""

    hidden: int
    width: int  # D'
    asked: float | None  # sparsity asked for; None when the slicing fraction was given
    parameters: Parameters  # with a tied head kept tied
    order: Order  # where the bases come from: "one-shot" from the dense model's moments
    untied_total: int  # had the embeddings been untied, as SliceGPT's own code does; the same for an untied model
    recovery: str = NO_RECOVERY  # that follows slicing
    epochs: int = 1  # of the recovery

    @property
    def slicing(self) -> float:
        """The fraction of the residual stream's axes that is cut (SliceGPT's own percentage)."""
        return 1 - self.width / self.hidden

    @property
    def removed_fraction(self) -> float:
        return self.parameters.removed_fraction

    @property
    def note(self) -> str:
        """One sentence for people when the parameters do not come out as asked, else empty."""
        removed = self.removed_fraction
        if removed < 0:
            return f"Slicing {self.slicing:.1%} adds {-removed:.1%} to the decoder: the shortcuts outweigh the cut."
        if self.asked is not None and abs(removed - self.asked) > 5e-4:
            return (
                f"No width that is a multiple of {MULTIPLE} removes {self.asked:.1%} of the decoder; "
                f"the nearest, {self.width} of {self.hidden}, removes {removed:.1%}."
            )
        return ""
