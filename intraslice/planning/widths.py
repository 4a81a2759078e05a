"""MLP widths for a ratio. Pure."""

from __future__ import annotations

from collections.abc import Sequence

MULTIPLE = 8  # neurons are removed in multiples of it, for fast kernels
BLOCK = 32  # values per block of quantised rows


def neurons_kept(neurons: int, ratio: float) -> int:
    """Width after removing `ratio` of the neurons, whose number is rounded down to a multiple of 8.

    At least min(8, `neurons`) are kept, unless the ratio is 1.
    """
    if ratio >= 1:
        return 0
    removed = int(neurons * ratio + 1e-6) // MULTIPLE * MULTIPLE
    return max(neurons - removed, min(MULTIPLE, neurons))


def aligned(width: float, dense: int, multiple: int) -> int:
    """The multiple nearest to a width, at least one; no width at all and the dense one stay."""
    return int(width) if width in (0, dense) else min(dense, max(multiple, round(width / multiple) * multiple))


def all_aligned(widths: Sequence[int], dense: Sequence[int], multiple: int) -> list[int]:
    """Widths of several layers as multiples. Each takes over what rounding the one before added, so the sum stays."""
    kept, excess = [], 0
    for width, whole in zip(widths, dense, strict=True):
        kept.append(aligned(width if width in (0, whole) else max(width - excess, 1), whole, multiple))
        excess += kept[-1] - width
    return kept


def block_widths(neurons: int) -> list[int]:
    """The dense width and all multiples of 32 below it, down to 0."""
    return [neurons, *range((neurons - 1) // BLOCK * BLOCK, -1, -BLOCK)]
