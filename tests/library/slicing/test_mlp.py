"""Which neurons stay and how the output map makes up for the rest: by hand, and against least squares."""

from functools import partial

import pytest
import torch
from random_weights import mlp_weights
from random_weights import random64 as random
from torch import Tensor
from torch.testing import assert_close

from intraslice.core.fit_config import INTRASLICE_FIT, FitConfig
from intraslice.core.linalg import damp_by_channel
from intraslice.core.weights import MLPWeights
from intraslice.planning.sizes import neurons_kept
from intraslice.slicing.mlp import fitted_moment, keep_best, rank_neurons

HIDDEN, NEURONS = 10, 24
make_weights = partial(mlp_weights, HIDDEN, NEURONS, dtype=torch.float64)


def sliced_on(weights: MLPWeights, rows: Tensor, width: int, **options) -> MLPWeights:
    moment = fitted_moment(weights, rows.T @ rows, rows.mean(0), len(rows))
    options = {"fisher": torch.ones_like(rows.mean(0)), "config": INTRASLICE_FIT} | options
    return keep_best(weights, rank_neurons(weights, moment, **options), rows.mean(0), width)


def kept_neurons(sliced: MLPWeights, weights: MLPWeights) -> list[int]:
    return [int((weights.up == row).all(1).nonzero()) for row in sliced.up]


@pytest.mark.parametrize(
    ("neurons", "ratio", "kept"),
    [
        *((100, 0.0, 100), (100, 0.07, 100), (100, 0.08, 92), (100, 0.3, 76), (1536, 0.3, 1080)),
        *((16, 0.99, 8), (4, 0.99, 4), (16, 1.0, 0)),
    ],
)
def test_neurons_go_in_eights_rounded_down(neurons, ratio, kept):
    assert neurons_kept(neurons, ratio) == kept


def test_the_neurons_that_carry_most_stay_in_order_but_for_those_that_the_loss_does_not_feel():
    weights = make_weights(bias=False)
    rows = random(300, NEURONS, seed=7) * torch.linspace(0.1, 2, NEURONS).roll(5)
    scores = damp_by_channel(rows.T @ rows).diagonal() * weights.down.square().sum(0)
    kept = scores.topk(16).indices.sort().values
    sliced = sliced_on(weights, rows, 16)
    assert kept_neurons(sliced, weights) == kept.tolist()
    assert torch.equal(sliced.gate, weights.gate[kept])
    rows = random(300, NEURONS, seed=7)
    scores = damp_by_channel(rows.T @ rows).diagonal() * weights.down.square().sum(0)
    fisher = torch.ones(NEURONS, dtype=torch.float64)
    fisher[scores.argmax()], fisher[scores.argmin()] = 0, 1e9
    kept = kept_neurons(sliced_on(weights, rows, 16, fisher=fisher), weights)
    assert kept == sorted((scores * fisher).topk(16).indices.tolist())
    assert int(scores.argmin()) in kept
    assert int(scores.argmax()) not in kept
    even = sliced_on(weights, rows, 16, fisher=torch.full((NEURONS,), 3.0, dtype=torch.float64))
    assert_close(even.down, sliced_on(weights, rows, 16).down)


def test_a_neuron_that_is_constant_or_made_up_of_others_costs_nothing():
    """A neuron that always says the same costs nothing, however loudly: the bias takes it exactly."""
    weights = make_weights(bias=True)
    rows = random(200, NEURONS, seed=7)
    rows[:, 5] = 10
    rows[:, 11] = -20
    sliced = sliced_on(weights, rows, 22, config=FitConfig(mlp_ridge=1e-12))
    kept = kept_neurons(sliced, weights)
    assert not {5, 11} & set(kept)
    assert_close(rows[:, kept] @ sliced.down.T + sliced.down_bias, rows @ weights.down.T + weights.down_bias)
    weights, rows = make_weights(bias=False), random(200, NEURONS, seed=7)
    rows[:, 3] = 1e-3 * (rows[:, 4] - 2 * rows[:, 6])
    sliced = sliced_on(weights, rows, NEURONS - 1, config=FitConfig(mlp_ridge=0.0))
    kept = kept_neurons(sliced, weights)
    assert 3 not in kept
    assert_close(rows[:, kept] @ sliced.down.T, rows @ weights.down.T)
