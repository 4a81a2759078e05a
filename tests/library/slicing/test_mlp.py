"""Which neurons stay and how the output map makes up for the rest: by hand, and against least squares."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

from intraslice.core.linalg import damp_by_channel
from intraslice.core.weights import MLPWeights
from intraslice.modeling.mlp import SlicedMLP
from intraslice.planning.sizes import neurons_kept
from intraslice.slicing.mlp import fitted_moment, keep_best, keep_neurons, neuron_scores, rank_neurons

HIDDEN, NEURONS = 10, 24


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def make_weights(bias: bool, gated: bool = True) -> MLPWeights:
    return MLPWeights(
        gate=random(NEURONS, HIDDEN, seed=1) if gated else None,
        up=random(NEURONS, HIDDEN, seed=2),
        down=random(HIDDEN, NEURONS, seed=3),
        gate_bias=random(NEURONS, seed=4) if gated and bias else None,
        up_bias=random(NEURONS, seed=5) if bias else None,
        down_bias=random(HIDDEN, seed=6) if bias else None,
        activation="silu",
    )


def sliced_on(weights: MLPWeights, rows: Tensor, width: int, **options) -> MLPWeights:
    return keep_best_of(weights, rows.T @ rows, rows.mean(0), len(rows), width, **options)


def keep_best_of(weights: MLPWeights, moment: Tensor, mean: Tensor, tokens: int, width: int, **options) -> MLPWeights:
    ranked = rank_neurons(weights, fitted_moment(weights, moment, mean, tokens), **options)
    return keep_best(weights, ranked, mean, width)


def kept_neurons(sliced: MLPWeights, weights: MLPWeights) -> list[int]:
    """Which rows of `up` stayed."""
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


def test_neuron_score_is_energy_times_squared_column_norm():
    moment = torch.tensor([[2.0, 9.0], [9.0, 3.0]])
    assert_close(neuron_scores(moment, torch.tensor([[1.0, 2.0], [1.0, 1.0]])), torch.tensor([4.0, 15.0]))


def test_neurons_that_the_loss_does_not_feel_go_first():
    """Scores times Fisher's information: a loud neuron of no consequence goes, a quiet one that matters stays."""
    weights = make_weights(bias=False)
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


def test_the_neurons_that_carry_most_stay_in_order():
    weights = make_weights(bias=False)
    rows = random(300, NEURONS, seed=7) * torch.linspace(0.1, 2, NEURONS).roll(5)
    moment = rows.T @ rows
    scores = damp_by_channel(moment).diagonal() * weights.down.square().sum(0)
    kept = scores.topk(16).indices.sort().values
    sliced = sliced_on(weights, rows, 16)
    assert kept_neurons(sliced, weights) == kept.tolist()
    assert torch.equal(sliced.gate, weights.gate[kept])


@pytest.mark.parametrize("gated", [True, False])
def test_biases_go_with_their_neurons(gated):
    weights = make_weights(bias=True, gated=gated)
    sliced = sliced_on(weights, random(300, NEURONS, seed=7), 16)
    kept = kept_neurons(sliced, weights)
    assert torch.equal(sliced.up_bias, weights.up_bias[kept])
    assert (sliced.gate is None) is (not gated)
    if gated:
        assert torch.equal(sliced.gate_bias, weights.gate_bias[kept])


@pytest.mark.parametrize("bias", [True, False])
def test_merging_is_least_squares_of_the_dense_output(bias):
    """Without damping, `torch.linalg.lstsq` on the tokens themselves; the bias is a column of ones."""
    weights = make_weights(bias)
    rows = random(400, NEURONS, seed=7) @ random(NEURONS, NEURONS, seed=8) + 1.5
    target = rows @ weights.down.T + (weights.down_bias if bias else 0)
    sliced = sliced_on(weights, rows, 16, damping=0.0)
    inputs = rows[:, kept_neurons(sliced, weights)]
    if bias:
        inputs = torch.cat([inputs, torch.ones(400, 1).double()], 1)
    expected = torch.linalg.lstsq(inputs, target).solution
    assert_close(sliced.down.T, expected[:16], atol=1e-8, rtol=1e-8)
    if bias:
        assert_close(sliced.down_bias, expected[16], atol=1e-8, rtol=1e-8)
    else:
        assert sliced.down_bias is None


def test_damped_merging_is_the_methods_formula():
    """`W_down[:, kept] + W_down[:, cut] (S_kk^-1 S_kc)^T` with `S = damp_by_channel(A^T A)`."""
    weights, rows = make_weights(bias=False), random(60, NEURONS, seed=7)
    sliced = sliced_on(weights, rows, 16)
    kept = kept_neurons(sliced, weights)
    cut = [neuron for neuron in range(NEURONS) if neuron not in kept]
    damped = damp_by_channel(rows.T @ rows)
    repair = torch.linalg.solve(damped[kept][:, kept], damped[kept][:, cut])
    assert_close(sliced.down, weights.down[:, kept] + weights.down[:, cut] @ repair.T)


def test_a_constant_neuron_goes_into_the_next_bias():
    """A neuron that always says the same costs nothing, however loudly: the bias takes it exactly."""
    weights = make_weights(bias=True)
    rows = random(200, NEURONS, seed=7)
    rows[:, 5] = 10
    rows[:, 11] = -20
    sliced = sliced_on(weights, rows, 22, damping=1e-12)
    kept = kept_neurons(sliced, weights)
    assert not {5, 11} & set(kept)
    assert_close(rows[:, kept] @ sliced.down.T + sliced.down_bias, rows @ weights.down.T + weights.down_bias)


@torch.no_grad()
@pytest.mark.parametrize("name", ["phi", "llama-biased"])
def test_choosing_by_variance_beats_choosing_by_energy_where_there_is_a_bias(tiny_case, name):
    """On held-out tokens, over all layers of a model whose neurons have means far from zero."""
    case, errors = tiny_case(name), {"variance": 0.0, "energy": 0.0}
    inputs, held_out = [], torch.randint(3, 256, (16, 48), generator=torch.Generator().manual_seed(1))
    mlps = [layer.mlp for layer in case.loaded.model.model.layers]
    handles = [mlp.down_proj.register_forward_pre_hook(lambda _, rows: inputs.append(rows[0])) for mlp in mlps]
    case.loaded.model(held_out)
    for handle in handles:
        handle.remove()
    for mlp, stats, rows in zip(mlps, case.stats.layers, inputs, strict=True):
        weights, width = mlp.weights(), neurons_kept(mlp.neurons, 0.4)
        moments = stats.mlp_moment, stats.mlp_sum / case.stats.tokens, case.stats.tokens
        loud = neuron_scores(moments[0], weights.down).topk(width).indices.sort().values
        damped = damp_by_channel(fitted_moment(weights, *moments), 0.01)
        by_variance = keep_best_of(weights, *moments, width, damping=0.01)
        choices = {"variance": by_variance, "energy": keep_neurons(weights, damped, moments[1], loud)}
        for choice, sliced in choices.items():
            kept = kept_neurons(sliced, weights)
            output = rows[..., kept] @ sliced.down.T + sliced.down_bias
            errors[choice] += (output - mlp.down_proj(rows)).square().sum().item()
    assert errors["variance"] < errors["energy"]


def test_a_neuron_that_others_make_up_costs_nothing():
    weights, rows = make_weights(bias=False), random(200, NEURONS, seed=7)
    rows[:, 3] = 1e-3 * (rows[:, 4] - 2 * rows[:, 6])
    sliced = sliced_on(weights, rows, NEURONS - 1, damping=0.0)
    kept = kept_neurons(sliced, weights)
    assert 3 not in kept
    assert_close(rows[:, kept] @ sliced.down.T, rows @ weights.down.T)


@pytest.mark.parametrize("bias", [True, False])
def test_error_falls_with_width(bias):
    """The kept neurons are nested, so least squares can only gain; what is merged is a real module's own input."""
    weights, hidden = make_weights(bias), random(1, 500, HIDDEN, seed=9)
    dense = SlicedMLP(weights)
    rows, target = dense.inner(hidden), dense(hidden)
    errors = [
        (SlicedMLP(sliced_on(weights, rows.flatten(0, 1), width, damping=1e-10))(hidden) - target)
        .square()
        .mean()
        .item()
        for width in (4, 8, 12, 16, 20)
    ]
    assert errors == sorted(errors, reverse=True)
    assert errors[-1] < 0.5 * errors[0]
