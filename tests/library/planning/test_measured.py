"""Importances corrected by measured curves: hand-computed slopes, the units' order, the median."""

from __future__ import annotations

import pytest
import torch

from intraslice.planning.estimators.measured import corrected, unit_costs


def test_a_unit_costs_the_slope_of_its_curve() -> None:
    # From 0 to 0.5 the slope is 2, from 0.5 to 1 it is 4: at 0, 0.25 and 0.75 it is 0, 2 and 4, straight between.
    costs = unit_costs([0.5, 1.0], [1.0, 3.0], 4)
    torch.testing.assert_close(costs, torch.tensor([1.0, 2.5, 3.5, 4.0], dtype=torch.float64))


def test_no_unit_costs_less_than_one_that_goes_before_it() -> None:
    for curve in ([1.0, 1.5], [1.0, 0.5], [-0.1, 0.2], [0.0, 0.0]):
        costs = unit_costs([0.5, 1.0], curve, 50)
        assert (costs.diff() >= 0).all()
        assert (costs >= 0).all()


def test_units_keep_their_order_and_all_layers_their_median() -> None:
    foretold = [torch.tensor([3.0, 1.0, 2.0, 4.0]), torch.tensor([5.0, 1.0])]
    found = corrected(foretold, [0.5, 1.0], [[1.0, 3.0], [0.01, 0.03]])
    for before, after in zip(foretold, found, strict=True):
        assert before.argsort().tolist() == after.argsort().tolist()
    assert torch.cat(found).median().item() == pytest.approx(torch.cat(foretold).median().item())
    assert found[1].sum() / found[0].sum() < foretold[1].sum() / foretold[0].sum()  # it was seen to cost less
    assert corrected(foretold, [0.5, 1.0], [[0.0, 0.0]] * 2) == foretold  # nothing was measured


def test_curves_that_say_what_is_foretold_change_nothing() -> None:
    foretold = torch.arange(1.0, 1001.0)
    places = [0.1 * step for step in range(1, 11)]
    curve = [foretold[: int(place * 1000)].sum().item() for place in places]
    (found,) = corrected([foretold], places, [curve])
    torch.testing.assert_close(found[100:900], foretold[100:900], rtol=0.02, atol=0)
