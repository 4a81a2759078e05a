"""Moments, damping, ridge solves and principal axes. Pure: torch alone, no model in sight."""

from __future__ import annotations

from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from intraslice.core.errors import NumericalError

DAMPING = 0.01
BLOCK = 256  # rows of a symmetric moment that are added at once


def add_moment_(total: Float[Tensor, "rows columns"], left: Tensor, right: Tensor | None = None) -> None:
    """Add `left^T right` over all tokens to `total`, in place. Leading axes are tokens.

    Without `right`, `left^T left` is added to a total that is symmetric, and stays so.
    """
    if right is None:
        add_lower_moment_(total, left)
        mirror_(total)
    else:
        total.addmm_(left.flatten(0, -2).to(total.dtype).T, right.flatten(0, -2).to(total.dtype))


def add_lower_moment_(total: Float[Tensor, "n n"], left: Tensor) -> None:
    """`left^T left`, added to `total` below the diagonal, for little more than half; what is above wants `mirror_`."""
    left = left.flatten(0, -2).to(total.dtype)
    for start in range(0, len(total), BLOCK):
        end = start + BLOCK
        total[start:end, :end].addmm_(left[:, start:end].T, left[:, :end])


def mirror_(total: Float[Tensor, "n n"]) -> None:
    """Make a matrix symmetric, in place, by what lies below its diagonal's blocks."""
    for start in range(BLOCK, len(total), BLOCK):
        total[:start, start : start + BLOCK] = total[start : start + BLOCK, :start].T


def damp(moment: Float[Tensor, "n n"], damping: float = DAMPING) -> Float[Tensor, "n n"]:
    """`M + damping * mean(diag M) * Id`. An all-zero moment gets the identity, so that its ridge solution is zero.

    One of no rows stays. Raises NumericalError where the diagonal is not finite.
    """
    if not len(moment):
        return moment
    diagonal = moment.diagonal().mean()
    if not torch.isfinite(diagonal):
        raise NumericalError("activation moments are not finite; calibrate in float32, or on other text")
    damped = moment.clone()
    damped.diagonal().add_(torch.where(diagonal > 0, damping * diagonal, torch.ones_like(diagonal)))
    return damped


def typical_damping(moment: Float[Tensor, "n n"]) -> float:
    """A damping for `damp` that comes to a tenth of the median of the diagonal rather than a share of its mean.

    Where activations are massive one channel sets the mean, and damping by it leaves next to nothing of a repair.
    """
    diagonal = moment.diagonal()
    return max(0.1 * float(diagonal.median() / diagonal.mean().clamp_min(torch.finfo(moment.dtype).tiny)), 1e-5)


def cholesky(system: Float[Tensor, "n n"]) -> Float[Tensor, "n n"]:
    """The lower factor of a symmetric positive definite system. Raises NumericalError when it is not."""
    factor, info = torch.linalg.cholesky_ex(system)
    if info.item() != 0 or not torch.isfinite(factor.diagonal()).all():
        raise NumericalError(
            f"a {len(system)} x {len(system)} moment is singular even with damping: calibration text is too uniform, "
            "or too short; calibrate on more text, of more different words"
        )
    return factor


def gradient_of(leaf: Tensor) -> Tensor:
    """The gradient that a backward pass has left on a leaf. Raises ValueError where there is none."""
    if leaf.grad is None:
        raise ValueError("the leaf has no gradient; nothing was computed from it, or nothing passed backward")
    return leaf.grad


def solve(system: Float[Tensor, "n n"], right: Float[Tensor, "n m"]) -> Float[Tensor, "n m"]:
    """`system^-1 right` for a symmetric positive definite system. Raises NumericalError when it is not."""
    factor = cholesky(system)
    # From the right, two triangular solves take two thirds of the time of `cholesky_solve` on a CPU.
    half = torch.linalg.solve_triangular(factor.mT, right.mT, upper=True, left=False)
    return torch.linalg.solve_triangular(factor, half, upper=False, left=False).mT


class OrderedFactor(NamedTuple):
    """A damped moment in some order of its rows, whose first rows, however many, have the factor's first rows."""

    order: Int[Tensor, " n"]
    factor: Float[Tensor, "n n"]  # lower (Cholesky)


def factor_in_order(damped: Float[Tensor, "n n"], order: Int[Tensor, " n"]) -> OrderedFactor:
    """The factor of a damped moment in an order. Raises NumericalError where it is singular."""
    # index_select takes a part of the time of indexing
    return OrderedFactor(order, cholesky(damped.index_select(0, order).index_select(1, order)))


def principal_axes(
    moment: Float[Tensor, "*batch n n"],
) -> tuple[Float[Tensor, "*batch n"], Float[Tensor, "*batch n n"]]:
    """Eigenvalues, descending and not below zero, and the axes as columns. Raises NumericalError if not finite."""
    if not torch.isfinite(moment).all():
        raise NumericalError("activation moments are not finite; calibrate in float32, or on other text")
    values, vectors = torch.linalg.eigh(moment)
    return values.flip(-1).clamp_min(0), vectors.flip(-1)


def explained_variance(values: Float[Tensor, "*batch n"]) -> Float[Tensor, "*batch n"]:
    """Cumulated share of the variance that the first 1..n axes hold (all ones where there is no variance at all)."""
    total = values.sum(-1, keepdim=True)
    return torch.where(total > 0, values.cumsum(-1) / total.clamp_min(torch.finfo(values.dtype).tiny), 1.0)


def diagonal_blocks(moment: Float[Tensor, "n n"], count: int) -> Float[Tensor, "count d d"]:
    """The `count` equal blocks on the diagonal, such as each head's own moment."""
    size = len(moment) // count
    return moment.view(count, size, count, size).diagonal(dim1=0, dim2=2).permute(2, 0, 1)
