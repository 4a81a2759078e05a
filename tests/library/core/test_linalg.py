"""Moments, damping, solves and axes against hand-computed numbers and torch's own routines."""

import jaxtyping
import pytest
import torch
from random_weights import random64 as random
from torch.testing import assert_close

from intraslice.core.errors import NumericalError
from intraslice.core.linalg import BLOCK, add_moment_, cholesky, damp, damp_by_channel, principal_axes, solve


def test_moments_add_up_over_batches_and_leading_axes_in_the_totals_precision():
    left, right = random(2, 5, 3), random(2, 5, 4, seed=1)
    moment, cross = torch.zeros(3, 3, dtype=torch.float64), torch.ones(3, 4, dtype=torch.float64)
    for batch in range(2):
        add_moment_(moment, left[batch])
        add_moment_(cross, left[batch : batch + 1], right[batch : batch + 1])
    rows = left.reshape(10, 3)
    assert_close(moment, rows.T @ rows)
    assert_close(cross, 1 + rows.T @ right.reshape(10, 4))
    rows = torch.full((4096, 1), 1.0, dtype=torch.bfloat16)
    total = torch.zeros(1, 1)
    add_moment_(total, rows)
    assert total.item() == 4096  # bfloat16 sums stand still at 256


@pytest.mark.parametrize("columns", [BLOCK - 1, BLOCK, 2 * BLOCK + 3])
def test_a_moment_stays_symmetric_whatever_its_size(columns):
    rows = random(2, 7, columns)
    moment = torch.zeros(columns, columns, dtype=torch.float64)
    for batch in rows:
        add_moment_(moment, batch)
    assert_close(moment, rows.flatten(0, 1).T @ rows.flatten(0, 1))
    for start in range(0, columns, BLOCK):  # to the last bit, but within a block
        assert torch.equal(moment[start:, :start], moment[:start, start:].T)


def test_damping_adds_shares_of_the_mean_or_of_each_channel_and_nothing_measured_gives_zeros():
    moment = torch.tensor([[4.0, 1.0], [1.0, 2.0]])  # mean diagonal 3
    assert_close(damp(moment, 0.1), torch.tensor([[4.3, 1.0], [1.0, 2.3]]))
    assert_close(damp(moment), torch.tensor([[4.03, 1.0], [1.0, 2.03]]))
    assert_close(moment, torch.tensor([[4.0, 1.0], [1.0, 2.0]]))  # not in place
    nothing = torch.zeros(3, 3)
    assert_close(damp(nothing), torch.eye(3))
    assert_close(solve(damp(nothing), torch.zeros(3, 2)), torch.zeros(3, 2))
    moment = torch.diag(torch.tensor([1.0, 2.0, 3.0, 4.0, 1e4])).double() + 0.5
    before, mean = moment.clone(), moment.diagonal().mean()
    added = 0.1 * (moment.diagonal() + 3.5 + 1e-4 * mean)
    assert_close(damp_by_channel(moment) - moment, torch.diag(added))
    assert torch.equal(moment, before)
    assert damp_by_channel(torch.diag(torch.tensor([0.0, 0.0, 1.0])))[0, 0] > 0  # channels that are never active
    assert_close(damp_by_channel(torch.zeros(3, 3)), torch.eye(3))


@pytest.mark.parametrize("system", [[[1.0, 1.0], [1.0, 1.0]], [[1.0, 0.0], [0.0, -1.0]]])
def test_singular_systems_are_named(system):
    with pytest.raises(NumericalError, match="2 x 2 second-moment matrix is singular even with damping"):
        solve(torch.tensor(system), torch.ones(2, 1))


def test_one_token_over_and_over_is_called_too_uniform():
    row = random(1, 1536).float()
    moment = 1e4 * row.T @ row
    with pytest.raises(NumericalError, match="calibration text is too short or too uniform") as caught:
        solve(damp(moment, 1e-9), moment)
    assert "float32" not in str(caught.value)  # which moments are anyway


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_values_that_are_not_finite_are_named(value):
    moment = torch.eye(3)
    moment[1, 1] = value
    for refuses in (damp, principal_axes, lambda broken: solve(broken, torch.ones(3, 1))):
        with pytest.raises(NumericalError):
            refuses(moment)


def test_principal_axes_of_a_rank_one_moment():
    values, axes = principal_axes(torch.tensor([[9.0, 12.0], [12.0, 16.0]]))  # (3, 4) twice
    assert_close(values, torch.tensor([25.0, 0.0]), atol=1e-5, rtol=0)
    assert (values >= 0).all()  # rounding must not make it negative
    assert_close(axes[:, 0].abs(), torch.tensor([0.6, 0.8]))


def test_shapes_and_types_are_checked_in_the_librarys_tests():
    with pytest.raises(jaxtyping.TypeCheckError, match="system"):
        cholesky(torch.ones(2, 3))
    with pytest.raises(jaxtyping.TypeCheckError, match="system"):
        cholesky("no tensor")
