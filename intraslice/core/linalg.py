"""Moments, damping, ridge solves, principal axes, and the fit of attention's output map. Pure: tensors, no models."""

from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from intraslice.core.errors import NumericalError
from intraslice.core.fit_config import INTRASLICE_FIT

DAMPING = 0.01  # relative to the mean of the diagonal
BLOCK = 256  # rows of a symmetric moment that are added at once


def add_moment_(total: Float[Tensor, "rows columns"], left: Tensor, right: Tensor | None = None) -> None:
    """Add `left^T right` over all tokens, the leading axes, to `total`, or `left^T left`, which keeps it symmetric."""
    if right is None:
        add_lower_moment_(total, left)
        mirror_(total)
    else:
        total.addmm_(left.flatten(0, -2).to(total.dtype).T, right.flatten(0, -2).to(total.dtype))


def add_lower_moment_(total: Float[Tensor, "n n"], left: Tensor) -> None:
    """Add `left^T left` to the lower triangle of `total`, at little more than half the cost; `mirror_` completes it."""
    left = left.flatten(0, -2).to(total.dtype)
    for start in range(0, len(total), BLOCK):
        end = start + BLOCK
        total[start:end, :end].addmm_(left[:, start:end].T, left[:, :end])


def mirror_(total: Float[Tensor, "n n"]) -> None:
    """Make a matrix symmetric, in place: copy the blocks below the diagonal to those above."""
    for start in range(BLOCK, len(total), BLOCK):
        total[:start, start : start + BLOCK] = total[start : start + BLOCK, :start].T


def damp(moment: Float[Tensor, "n n"], damping: float = DAMPING) -> Float[Tensor, "n n"]:
    """`M + damping * mean(diag M) * Id`. The identity is added to an all-zero moment, so that its ridge solution is 0.

    A moment without rows is returned unchanged. Raises NumericalError where the diagonal is not finite.
    """
    if not len(moment):
        return moment
    diagonal = moment.diagonal().mean()
    if not torch.isfinite(diagonal):
        raise NumericalError("activation moments are not finite; calibrate in float32, or on other text")
    damped = moment.clone()
    damped.diagonal().add_(torch.where(diagonal > 0, damping * diagonal, torch.ones_like(diagonal)))
    return damped


def damp_by_channel(moment: Float[Tensor, "n n"], damping: float = INTRASLICE_FIT.mlp_ridge) -> Float[Tensor, "n n"]:
    """`M + damping * (diag(M) + (median + 1e-4 mean) Id)`: noise in proportion to each channel and to a typical one.

    Median and mean are those of the diagonal. Unlike `damp`, it is not dominated by a massive channel. The identity is
    added to an all-zero moment. Raises NumericalError where the diagonal is not finite.
    """
    damped = damp(moment, 1e-4 * damping)  # which checks the diagonal
    damped.diagonal().copy_(damped_diagonal(moment.diagonal(), damping))
    return damped


def damped_diagonal(diagonal: Float[Tensor, " n"], damping: float = INTRASLICE_FIT.mlp_ridge) -> Float[Tensor, " n"]:
    """The diagonal of `damp_by_channel`, given that of the moment."""
    mean = diagonal.mean()
    damped = diagonal + torch.where(mean > 0, 1e-4 * damping * mean, torch.ones_like(mean))
    return damped.add_(diagonal + diagonal.median(), alpha=damping)


def cholesky(system: Float[Tensor, "n n"]) -> Float[Tensor, "n n"]:
    """The lower factor of a symmetric positive definite system. Raises NumericalError when it is not."""
    factor, info = torch.linalg.cholesky_ex(system)
    if info.item() != 0 or not torch.isfinite(factor.diagonal()).all():
        raise NumericalError(
            f"a {len(system)} x {len(system)} second-moment matrix is singular even with damping: the calibration text "
            "is too short or too uniform; calibrate on more, and more varied, text"
        )
    return factor


def solve(system: Float[Tensor, "n n"], right: Float[Tensor, "n m"]) -> Float[Tensor, "n m"]:
    """`system^-1 right` for a symmetric positive definite system. Raises NumericalError when it is not."""
    factor = cholesky(system)
    # Two triangular solves from the right take two thirds of the time of `cholesky_solve` on a CPU.
    half = torch.linalg.solve_triangular(factor.mT, right.mT, upper=True, left=False)
    return torch.linalg.solve_triangular(factor, half, upper=False, left=False).mT


class OrderedFactor(NamedTuple):
    """The Cholesky factor of a damped moment with reordered rows: its first k rows factor the first k rows' block."""

    order: Int[Tensor, " n"]
    factor: Float[Tensor, "n n"]  # lower (Cholesky)


def factor_in_order(damped: Float[Tensor, "n n"], order: Int[Tensor, " n"]) -> OrderedFactor:
    """Factor a damped moment with its rows and columns in this order. Raises NumericalError where it is singular."""
    # index_select is faster than indexing
    return OrderedFactor(order, cholesky(damped.index_select(0, order).index_select(1, order)))


def principal_axes(
    moment: Float[Tensor, "*batch n n"],
) -> tuple[Float[Tensor, "*batch n"], Float[Tensor, "*batch n n"]]:
    """Eigenvalues, descending and at least 0, and the axes as columns. Raises NumericalError if not finite."""
    if not torch.isfinite(moment).all():
        raise NumericalError("activation moments are not finite; calibrate in float32, or on other text")
    values, vectors = torch.linalg.eigh(moment)
    return values.flip(-1).clamp_min(0), vectors.flip(-1)


def diagonal_blocks(moment: Float[Tensor, "n n"], count: int) -> Float[Tensor, "count d d"]:
    """The `count` equal blocks on the diagonal, such as the moment of each head."""
    size = len(moment) // count
    return moment.view(count, size, count, size).diagonal(dim1=0, dim2=2).permute(2, 0, 1)


def by_kv_head(values: Float[Tensor, "heads ..."], kv_head: Int[Tensor, " heads"]) -> Float[Tensor, "kv_heads ..."]:
    """Sums over the query heads of each key/value head; `kv_head` numbers them from 0, and is not empty."""
    return values.new_zeros(int(kv_head.max()) + 1, *values.shape[1:]).index_add_(0, kv_head, values)


def value_axes(
    moment: Float[Tensor, "channels channels"],
    output: Float[Tensor, "hidden heads d"],
    kv_head: Int[Tensor, " heads"],
    dim: int,
    *,
    is_output_weighted: bool = True,
) -> Float[Tensor, "kv_heads d dim"]:
    """Return the axes of the head outputs, one basis per key/value head, since its queries share the value head.

    The axes are the first principal axes of the heads' moment plus `W_o^T W_o`, each divided by its trace. Without
    `is_output_weighted` they are those of the moment alone (paper §3), which fit the calibration text, and lose
    directions that other texts use. At full width the basis is the identity. It is empty if no head is kept. Raises
    NumericalError where the moment is not finite.
    """
    if not len(kv_head):
        return moment.new_zeros(0, output.shape[-1], dim)
    head_moments = diagonal_blocks(moment, len(kv_head))
    if dim == head_moments.shape[-1]:
        groups = int(kv_head.max()) + 1
        return torch.eye(dim, dtype=moment.dtype, device=moment.device).expand(groups, -1, -1)

    def shared(matrices: Tensor) -> Tensor:
        total = by_kv_head(matrices, kv_head)
        trace = total.diagonal(dim1=-2, dim2=-1).sum(-1)[:, None, None]
        return total / trace.clamp_min(torch.finfo(total.dtype).tiny)

    weighed = shared(head_moments)
    if is_output_weighted:
        output = output.to(moment.dtype)
        weighed = weighed + shared(torch.einsum("oha,ohb->hab", output, output))
    return principal_axes(weighed)[1][..., :dim]


class OutputFit(NamedTuple):
    """The change of the map: `moment change = missing`. Z: the kept heads in their axes; Y: the dense output."""

    moment: Float[Tensor, "inputs inputs"]  # Z^T Z
    cross: Float[Tensor, "inputs hidden"]  # Z^T Y
    before: Float[Tensor, "inputs hidden"]  # the dense map in these axes
    missing: Float[Tensor, "inputs hidden"]  # Z^T (Y - Z before)


def output_fit(
    moment: Float[Tensor, "kept kept"],
    cross: Float[Tensor, "kept hidden"],
    axes: Float[Tensor, "heads d dim"],
    kept_output: Float[Tensor, "hidden heads d"],
) -> OutputFit:
    """The fit on `Z = X V`, with X the kept heads' outputs and V, `axes`, the axes of each of these heads.

    `moment` is `X^T X`, `cross` is `X^T Y`, and `kept_output` has the dense output map's columns of the kept heads. A
    ridge penalty, added to the moment, is on changes of the map, while the paper's (section 3) is on the map itself.
    """
    heads, width, _ = axes.shape
    pairs_of_heads = moment.view(heads, width, heads, width)
    narrow = torch.einsum("hap,hakb,kbq->hpkq", axes, pairs_of_heads, axes).flatten(2).flatten(0, 1)
    narrow_cross = torch.einsum("hap,had->hpd", axes, cross.unflatten(0, (heads, width))).flatten(0, 1)
    before = torch.einsum("hap,oha->hpo", axes, kept_output.to(axes.dtype)).flatten(0, 1)
    return OutputFit(narrow, narrow_cross, before, narrow_cross - narrow @ before)
