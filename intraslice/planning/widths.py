"""How many neurons stay for a ratio. Pure."""

from __future__ import annotations

MULTIPLE = 8  # neurons are removed in eights, which is what fast kernels like
BLOCK = 32  # values that quantised rows hold together


def neurons_kept(neurons: int, ratio: float) -> int:
    """Width left when `ratio` of the neurons goes; the number removed is rounded down to a multiple of 8.

    Some stay, unless the ratio is 1.
    """
    if ratio >= 1:
        return 0
    removed = int(neurons * ratio + 1e-6) // MULTIPLE * MULTIPLE
    return max(neurons - removed, min(MULTIPLE, neurons))


def block_widths(neurons: int) -> list[int]:
    """The dense width, and all multiples of 32 below it, down to none."""
    return [neurons, *range((neurons - 1) // BLOCK * BLOCK, -1, -BLOCK)]
