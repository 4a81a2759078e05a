"""The axes of the value heads against the matrices whose principal axes they are."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.testing import assert_close

from intraslice.core.output_fit import value_axes

HIDDEN = 12


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_queries_of_a_group_share_the_axes_of_their_moments_and_output_maps():
    """Principal axes of the two sums over the group, each divided by its trace."""
    rows, output = random(50, 12), random(HIDDEN, 3, 4, seed=1)
    moment, energies = rows.T @ rows, torch.einsum("oha,ohb->hab", output, output)
    axes = value_axes(moment, output, torch.tensor([0, 1, 1]), 2)
    blocks = torch.stack([moment[4 * h : 4 * h + 4, 4 * h : 4 * h + 4] for h in range(3)])
    assert axes.shape == (2, 4, 2)
    for basis, heads in zip(axes, (slice(0, 1), slice(1, 3)), strict=True):
        assert_close(basis.T @ basis, torch.eye(2, dtype=torch.float64))
        mixture = sum(part / part.trace() for part in (blocks[heads].sum(0), energies[heads].sum(0)))
        captured = torch.trace(basis.T @ mixture @ basis)
        assert_close(captured, torch.linalg.eigvalsh(mixture)[-2:].sum())


def test_values_that_are_never_active_get_the_axes_of_the_output_map():
    output = torch.zeros(HIDDEN, 1, 4)
    output[0, 0, 2], output[1, 0, 1] = 3.0, 2.0
    axes = value_axes(torch.zeros(4, 4), output, torch.tensor([0]), 2)
    assert_close(axes[0].abs(), torch.eye(4)[:, [2, 1]])


def test_full_width_values_are_not_rotated():
    axes = value_axes(random(8, 8), random(HIDDEN, 2, 4, seed=1), torch.tensor([0, 1]), 4)
    assert torch.equal(axes, torch.eye(4).double().expand(2, 4, 4))
