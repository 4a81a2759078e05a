"""The `output-error` estimator against least squares on data, and by hand."""

from dataclasses import replace

import pytest
import torch
from random_weights import random
from torch import Tensor
from torch.testing import assert_close

from intraslice.calibration.stats import CalibrationStats
from intraslice.core.linalg import value_axes
from intraslice.planning.estimators import LayerCalibration
from intraslice.planning.estimators.output_error import (
    attention_damages,
    dropped_fisher,
    explained_energy,
    squared_gradient,
    unit_importances,
)
from intraslice.planning.sizes import LayerSizes

HEADS, KV_HEADS, DIM, HIDDEN, TOKENS = 4, 2, 6, 10, 4000


@pytest.fixture(scope="module")
def inputs() -> Tensor:
    """Correlated inputs of o_proj (tokens, channels)."""
    channels = HEADS * DIM
    return random(TOKENS, channels) @ (torch.eye(channels) + 0.3 * random(channels, channels, seed=1))


def layer_of(inputs: Tensor, gradients: Tensor) -> LayerCalibration:
    """The statistics of one layer from its inputs of o_proj and the gradients of its outputs (tokens, hidden)."""
    output_map = random(HIDDEN, HEADS, DIM, seed=2)
    masks = inputs * (gradients @ output_map.flatten(1))
    return LayerCalibration(
        sizes=LayerSizes(HIDDEN, HEADS, KV_HEADS, DIM, 8, True, False, False, 0),
        attention_gradients=masks.view(400, -1, HEADS * DIM).sum(1),
        mlp_gradients=random(400, 8, seed=3),
        attention_moment=inputs.T @ inputs,
        mlp_moment=torch.eye(8),
        query_fisher=torch.zeros(HEADS, DIM),
        output_map=output_map,
        kv_head=torch.arange(HEADS) // (HEADS // KV_HEADS),
    )


@pytest.mark.parametrize(("heads", "width"), [([0, 1, 2, 3], 4), ([1, 3], 6), ([0, 1, 3], 2)])
def test_the_error_is_that_of_the_fit_that_slicing_makes(inputs, heads, width):
    """Least squares on the tokens, on the axes of `value_axes`; rows for the ridge keep the map what it was."""
    output_map = random(HIDDEN, HEADS, DIM, seed=2)
    owner = (torch.tensor(heads) // (HEADS // KV_HEADS)).unique(return_inverse=True)[1]
    kept, kept_map = inputs.view(TOKENS, HEADS, DIM)[:, heads], output_map[:, heads]
    moment, target = kept.flatten(1).T @ kept.flatten(1), inputs @ output_map.flatten(1).T
    axes = value_axes(moment, kept_map, owner, width)[owner]
    features = torch.einsum("nha,hap->nhp", kept, axes).flatten(1)
    before = torch.einsum("oha,hap->hpo", kept_map, axes).flatten(0, 1)
    penalty = (0.02 * features.square().sum(0).mean()).sqrt() * torch.eye(features.shape[1])
    rows, wanted = torch.cat([features, penalty]), torch.cat([target, penalty @ before])
    error = (wanted - rows @ torch.linalg.lstsq(rows, wanted).solution).square().sum()
    explained = explained_energy(moment, kept.flatten(1).T @ target, kept_map, owner, width)
    assert_close(explained, target.square().sum() - error, rtol=1e-3, atol=0)


def test_the_squared_gradient_is_found_from_the_masks(inputs):
    """Of gradients that are independent of the inputs, as the estimate assumes."""
    gradients = 0.05 * random(TOKENS, HIDDEN, seed=4)
    assert squared_gradient(layer_of(inputs, gradients)) == pytest.approx(0.05**2, rel=0.15)
    assert squared_gradient(layer_of(inputs, 0 * gradients)) == 0


def test_a_whole_module_does_the_damage_of_its_output(inputs):
    """And nothing removed does none."""
    layer = layer_of(inputs, 0.05 * random(TOKENS, HIDDEN, seed=4))
    whole = squared_gradient(layer) * (inputs @ layer.output_map.flatten(1).T).square().sum().item()
    none, some, all_ = attention_damages(layer, (0.0, 0.5, 1.0))
    assert none == pytest.approx(0, abs=1e-4 * whole)
    assert 0.02 * whole < some < all_
    assert all_ == pytest.approx(whole, rel=1e-3)


def test_dropped_pairs_do_the_damage_of_their_fisher_information(inputs):
    """Two heads share the pairs (0, 3), (1, 4) and (2, 5); a width of 2 keeps the pair with the largest sum."""
    fisher = torch.tensor([[1.0, 2.0, 3.0, 0.0, 0.0, 0.0], [5.0, 0.0, 0.0, 0.0, 1.0, 1.0]])
    assert dropped_fisher(fisher, torch.tensor([0, 0]), 2) == pytest.approx(3 + 4)  # 6 is kept
    assert dropped_fisher(fisher, torch.tensor([0, 1]), 4) == pytest.approx(1 + 1)
    layer = replace(layer_of(inputs, torch.zeros(TOKENS, HIDDEN)), query_fisher=torch.ones(HEADS, DIM))
    narrow = layer.table.dim[round(HEADS * DIM * 0.85)].item()
    damage = attention_damages(layer, (0.15,))[0]
    assert damage == pytest.approx((DIM - narrow) * layer.table.alive[round(HEADS * DIM * 0.85)].sum().item())
    whole = replace(layer, sizes=replace(layer.sizes, whole_queries=True))
    assert attention_damages(whole, (0.15,)) == [0.0]


def test_sums_of_importances_follow_the_damages():
    convex = unit_importances((0.25, 0.5, 1.0), (1.0, 4.0, 16.0), 64)
    assert_close(convex.cumsum(0)[[15, 31, 63]], torch.tensor([1.0, 4.0, 16.0]))
    assert (convex.diff() >= 0).all()
    stepped = unit_importances((0.25, 0.5, 1.0), (4.0, 5.0, 16.0), 64)  # the first quarter costs most of the half
    assert (stepped.diff() >= 0).all()
    assert stepped.sum() == pytest.approx(16.0)
    assert stepped.cumsum(0)[31] == pytest.approx(5.0, rel=0.05)
    falling = unit_importances((0.5, 1.0), (3.0, 2.0), 8)  # noise: more is removed at less damage
    assert falling.sum() == pytest.approx(3.0)


def test_every_layer_has_as_many_units_as_channels(family_case):
    stats: CalibrationStats = family_case.stats
    for sizes, layer in zip(stats.sizes, stats.profile.layers, strict=True):
        importances = layer.importances["output-error"]
        assert importances.attention.shape == (sizes.channels,)
        assert (importances.attention.diff() >= 0).all()
        assert importances.attention.isfinite().all()
        assert torch.equal(importances.mlp, layer.importances["pca"].mlp)
