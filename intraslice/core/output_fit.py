"""The least-squares fit of attention's output map: the axes of the value heads, and moments in them. Pure.

Slicing solves it; the estimator `output-error` computes the error that it leaves.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from intraslice.core.linalg import diagonal_blocks, principal_axes

RIDGE = 0.02  # of the output map's fit, relative to the mean of the diagonal of its inputs' second moment


def by_kv_head(values: Float[Tensor, "heads ..."], kv_head: Int[Tensor, " heads"]) -> Float[Tensor, "kv_heads ..."]:
    """Sums over the query heads of each key/value head; `kv_head` numbers them from 0, and is not empty."""
    return values.new_zeros(int(kv_head.max()) + 1, *values.shape[1:]).index_add_(0, kv_head, values)


def value_axes(
    moment: Float[Tensor, "channels channels"],
    output: Float[Tensor, "hidden heads d"],
    kv_head: Int[Tensor, " heads"],
    dim: int,
) -> Float[Tensor, "kv_heads d dim"]:
    """Axes of the head outputs, one basis per key/value head, since its queries share the value head.

    They are the first principal axes of the heads' moment plus `W_o^T W_o`, each divided by its trace. The paper takes
    the moment alone; its axes fit the calibration text, and lose directions that other texts use. At full width the
    basis is the identity. It is empty if no head is kept. Raises NumericalError where the moment is not finite.
    """
    if not len(kv_head):
        return moment.new_zeros(0, output.shape[-1], dim)
    head_moments = diagonal_blocks(moment, len(kv_head))
    if dim == head_moments.shape[-1]:
        groups = int(kv_head.max()) + 1
        return torch.eye(dim, dtype=moment.dtype, device=moment.device).expand(groups, -1, -1)
    output = output.to(moment.dtype)
    energies = torch.einsum("oha,ohb->hab", output, output)

    def shared(matrices: Tensor) -> Tensor:
        total = by_kv_head(matrices, kv_head)
        trace = total.diagonal(dim1=-2, dim2=-1).sum(-1)[:, None, None]
        return total / trace.clamp_min(torch.finfo(total.dtype).tiny)

    return principal_axes(shared(head_moments) + shared(energies))[1][..., :dim]


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
