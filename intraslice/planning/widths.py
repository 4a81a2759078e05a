"""MLP widths for a ratio. Pure."""

from __future__ import annotations

MULTIPLE = 8  # neurons are removed in multiples of it, for fast kernels
BLOCK = 32  # values per block of quantised rows


def neurons_kept(neurons: int, ratio: float, multiple: int = 1) -> int:
    """Width after removing `ratio` of the neurons, whose number is rounded down to a multiple of 8.

    At least min(8, `neurons`) are kept, unless the ratio is 1. The width is then rounded as by `aligned`.
    """
    if ratio >= 1:
        return 0
    removed = int(neurons * ratio + 1e-6) // MULTIPLE * MULTIPLE
    return aligned(max(neurons - removed, min(MULTIPLE, neurons)), neurons, multiple)


def aligned(width: int, dense: int, multiple: int) -> int:
    """The multiple nearest to a width, at least one; no width at all and the dense one stay."""
    return width if width in (0, dense) else min(dense, max(multiple, round(width / multiple) * multiple))


def block_widths(neurons: int) -> list[int]:
    """The dense width and all multiples of 32 below it, down to 0."""
    return [neurons, *range((neurons - 1) // BLOCK * BLOCK, -1, -BLOCK)]
