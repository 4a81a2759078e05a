"""The estimators' formulas by hand, against autograd, and in the ways the published code got them wrong.

And `output-error` against least squares on data.
"""

import re
from dataclasses import replace
from typing import NamedTuple

import numpy as np
import pytest
import torch
from random_weights import random as plain_random
from random_weights import random64 as random
from refusing import refused
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.testing import assert_close
from torch.utils.flop_counter import FlopCounterMode

from intraslice.calibration.stats import CalibrationStats
from intraslice.core.config import SliceConfig
from intraslice.core.linalg import diagonal_blocks, principal_axes, value_axes
from intraslice.core.weights import UNROTATED
from intraslice.modeling.families import blocks
from intraslice.planning.estimators import LayerCalibration
from intraslice.planning.estimators.estimator import group_gradients, neuron_importance, unit_channels
from intraslice.planning.estimators.fisher import fisher_head_importance
from intraslice.planning.estimators.output_error import (
    attention_damages,
    dropped_fisher,
    explained_energy,
    squared_gradient,
    unit_importances,
)
from intraslice.planning.estimators.pca import pca_importance
from intraslice.planning.kept_heads import MIN_HEAD_FRACTION, HeadTable, channel_scores, head_energies, head_table
from intraslice.planning.profile import Ranking
from intraslice.planning.ratios import cap_ratios, flops_per_token, make_plan
from intraslice.planning.sizes import LayerSizes
from intraslice.slicing.attention import cut_queries_and_keys

HEADS, KV_HEADS, DIM, HIDDEN, TOKENS = 4, 2, 6, 10, 4000


def moment(seed: int = 0) -> Tensor:
    rows = random(40, HEADS * DIM, seed=seed) * torch.linspace(0.5, 2, HEADS * DIM)
    return rows.T @ rows


def test_gradients_are_summed_in_groups_and_importances_their_squares():
    gradients = random(19, 5)
    groups = group_gradients(gradients, 8)
    assert_close(groups, torch.stack([gradients[:8].sum(0), gradients[8:16].sum(0), gradients[16:].sum(0)]))
    assert_close(group_gradients(gradients, 1), gradients)
    assert_close(group_gradients(gradients, 19), gradients.sum(0, keepdim=True))
    gradients = torch.tensor([[1.0, -2.0], [3.0, 0.5]])
    assert_close(neuron_importance(gradients), torch.tensor([10.0, 4.25]))
    own = torch.tensor([[2.0, 1.0], [1.0, 2.0]])
    assert_close(pca_importance(torch.tensor([[3.0, 1.0]]), own, 1), torch.tensor([8.0, 2.0]))
    assert_close(pca_importance(torch.tensor([[3.0, 1.0], [1.0, 1.0]]), own, 1), torch.tensor([10.0, 2.0]))


@pytest.mark.parametrize("unit", [1, 2, DIM])
def test_pca_importance_does_not_depend_on_eigenvector_signs(monkeypatch, unit):
    """The published code's does: it sums rotated gradients over a head before squaring."""
    gradients, own = random(4, HEADS * DIM, seed=1), moment()
    expected = pca_importance(gradients, own, HEADS, unit)

    def flipped(matrix: Tensor) -> tuple[Tensor, Tensor]:
        values, axes = principal_axes(matrix)
        signs = torch.ones(axes.shape[-1], dtype=axes.dtype)
        signs[::2] = -1
        return values, axes * signs

    monkeypatch.setattr("intraslice.planning.estimators.pca.principal_axes", flipped)
    assert_close(pca_importance(gradients, own, HEADS, unit), expected)


def test_a_head_that_the_loss_does_not_feel_goes_first_and_without_gradients_the_least_carrying_one(tiny_case):
    """Whatever it carries."""
    stats = tiny_case("llama-mha").stats
    layer = stats.layers[0]
    _, heads, dim = stats.output_maps[0].shape

    def table_of(gradients: Tensor) -> HeadTable:
        layers = [replace(layer, attention_gradients=gradients), *stats.layers[1:]]
        return replace(stats, layers=layers).profile.layers[0].table

    for head in range(heads):
        felt = layer.attention_gradients.clone()
        felt[:, head * dim : (head + 1) * dim] = 0
        assert not table_of(felt).alive[: heads * dim - dim, head].any()
    table = table_of(torch.zeros_like(layer.attention_gradients))
    scores = channel_scores(layer.attention_moment, stats.output_maps[0].square().sum(0))
    assert torch.equal(table.alive, head_table(head_energies(layer.attention_moment, scores), scores).alive)


def test_a_unit_is_a_whole_number_of_channels_that_fills_the_head():
    assert [unit_channels(64, fraction) for fraction in (1 / 64, 0.25, 1.0)] == [1, 16, 64]
    assert unit_channels(96, 0.333) == 32
    for fraction in (0.3, 0.001):
        message = refused(unit_channels, 64, fraction)
        assert re.search(r"must be one of 0\.01562, 0\.03125, .* for heads of 64 channels", message)


@pytest.mark.parametrize("unit", [1, 2, DIM])
def test_units_share_the_importance_of_their_channels_or_have_their_own_masks_squared_gradient(unit):
    gradients, own = random(5, HEADS * DIM, seed=1), moment()
    units = pca_importance(gradients, own, HEADS, unit)
    assert_close(units, pca_importance(gradients, own, HEADS).view(-1, unit).sum(1))
    assert_close(units.sum(), gradients.square().sum())  # a rotation keeps the total
    expected = torch.stack([part.sum(1).square().sum() for part in gradients.split(unit, dim=1)])
    assert_close(fisher_head_importance(gradients, HEADS, unit), expected)
    if unit == DIM:
        assert torch.equal(fisher_head_importance(gradients, HEADS, unit), fisher_head_importance(gradients, HEADS))


def test_the_usual_units_are_the_ends_of_the_fraction_and_a_profile_of_others_is_refused(family_case):
    """A whole head is fisher's unit and one channel pca's: those fractions give the usual plans to the last digit."""
    stats, dim = family_case.stats, family_case.stats.sizes[0].dim
    for estimator, fraction in (("fisher", 1.0), ("pca", 1 / dim)):
        usual = SliceConfig(0.3, estimator)
        named = SliceConfig(0.3, estimator, head_fraction=fraction)
        plans = [make_plan(stats.profile_for(config), config) for config in (usual, named)]
        assert plans[0].layers == plans[1].layers
        assert plans[0].reasons == plans[1].reasons
    with pytest.raises(ValueError, match="profile_for"):
        make_plan(stats.profile, SliceConfig(0.3, head_fraction=0.5))


@pytest.mark.parametrize("estimator", ["fisher", "output-error", "pca"])
@pytest.mark.parametrize("gradient_group", [1, 3, 16])
def test_a_plan_of_any_unit_removes_what_was_asked(case, estimator, gradient_group):
    stats = case.stats
    config = SliceConfig(0.3, estimator, head_fraction=0.5, gradient_group=gradient_group)
    profile = stats.profile_for(config)
    assert [len(profile.importances(name, "attention")[0]) for name in ("fisher", "output-error", "pca")] == 3 * [2 * 9]
    assert make_plan(profile, config).removed_fraction == pytest.approx(0.3, abs=0.02)


def test_principal_channels_come_heads_first_then_by_variance():
    """A gradient along a head's k-th axis is the importance of channel k of that head and of no other."""
    own = moment()
    axes = principal_axes(diagonal_blocks(own, HEADS))[1]
    gradient = torch.zeros(1, HEADS, DIM, dtype=torch.float64)
    gradient[0, 1] = 3 * axes[1, :, 2]
    expected = torch.zeros(HEADS * DIM, dtype=torch.float64)
    expected[DIM + 2] = 9
    assert_close(pca_importance(gradient.flatten(1), own, HEADS), expected)


RANKING = Ranking(np.arange(6.0), np.array([1, 0, 1, 1, 0, 1]), (2, 4))  # two layers of two and four units


@pytest.mark.parametrize(
    ("fraction", "ratios", "threshold"),
    [
        (0.0, [0.0, 0.0], 0.0),
        (0.5, [0.5, 0.5], 3.0),
        (2 / 6, [0.5, 0.25], 2.0),
        (2.5 / 6, [0.5, 0.375], 2.0),  # the straddling unit falls by half
        (1.0, [1.0, 1.0], 5.0),
        (1.7, [1.0, 1.0], 5.0),
    ],
)
def test_a_layers_ratio_is_the_share_of_its_fallen_units(fraction, ratios, threshold):
    found, cut = RANKING.ratios(fraction)
    assert found == pytest.approx(ratios)
    assert cut == threshold


@pytest.mark.parametrize(
    ("ratios", "weights", "capped"),
    [
        ([0.2, 0.4], [1, 1], [0.2, 0.4]),  # nothing to do
        ([0.9, 0.1, 0.2], [1, 1, 1], [0.6, 0.2, 0.4]),  # 0.3 over, shared 1 : 2
        ([0.9, 0.1, 0.2], [2, 1, 1], [0.6, 0.3, 0.6]),  # twice as much over, as that layer is twice as large
        ([1.0, 0.5, 0.1], [1, 1, 1], [0.6, 0.6, 0.4]),  # the second reaches the cap on its way
        ([1.0, 0.0, 0.0], [1, 1, 1], [0.6, 0.2, 0.2]),  # no proportions to follow
        ([0.9, 0.8], [1, 3], [0.6, 0.6]),  # no room at all
    ],
)
def test_what_is_over_the_cap_goes_to_the_others_in_proportion(ratios, weights, capped):
    assert cap_ratios(ratios, weights, 0.6) == pytest.approx(capped)


@pytest.mark.parametrize("name", ["llama-mha", "llama-gqa", "phi3"])
def test_operations_are_those_that_torch_counts(tiny_case, name):
    case, context = tiny_case(name), 20
    plan = case.plan()
    sliced = case.cut(plan)
    expected = flops_per_token(case.stats.profile, plan, case.dense.lm_head.weight.numel(), context)
    for model, own in zip((case.dense, sliced), expected, strict=True):
        earlier = model(case.tokens[:1, : context - 1], use_cache=True).past_key_values
        with FlopCounterMode(display=False) as counted, sdpa_kernel(SDPBackend.MATH):  # others count as 0
            model(case.tokens[:1, context - 1 : context], past_key_values=earlier)
        assert counted.get_total_flops() == own


def test_channel_scores_and_head_energies_by_hand():
    moment = torch.diag(torch.tensor([2.0, 3.0, 5.0, 7.0]))
    output = torch.tensor([[[1.0, 0.0], [2.0, 1.0]], [[1.0, 4.0], [0.0, 1.0]]])  # columns' norms^2: 2, 16, 4, 2
    assert_close(channel_scores(moment, output.square().sum(0)), torch.tensor([[4.0, 48.0], [20.0, 14.0]]))
    moment = torch.zeros(4, 4)
    moment[:2, :2] = torch.tensor([[2.0, 1.0], [1.0, 2.0]])  # eigenvalues 3 and 1
    moment[:2, 2:] = moment[2:, :2] = 0.5  # between heads: does not count
    moment[3, 3] = 6.0
    energies = head_energies(moment, torch.tensor([[4.0, 4.0], [1.0, 9.0]]))
    assert_close(energies, torch.tensor([[6.0, 2.0], [10.0, 0.0]]))
    assert_close(head_energies(torch.zeros(4, 4), torch.zeros(2, 2)), torch.zeros(2, 2))


def width_for(keep: int, count: int, dim: int) -> int:
    return min(max(round(keep / count / 2) * 2, 2), dim)


def heads_by_the_book(energies: Tensor, scores: Tensor, keep: int) -> tuple[list[int], int]:
    """METHOD's three rules, one after the other, in plain loops."""
    heads, dim = energies.shape
    best = scores.flatten().argsort(descending=True, stable=True)[:keep].tolist()
    among_best = [sum(channel // dim == head for channel in best) for head in range(heads)]
    alive = list(range(heads))
    for head in sorted(alive, key=lambda head: among_best[head]):
        if among_best[head] < keep / heads / 4 and keep <= (len(alive) - 1) * dim:
            alive.remove(head)

    def captured(head: int, count: int) -> float:
        return energies[head, : width_for(keep, count, dim)].sum().item()

    def total(kept: list[int]) -> float:
        return sum(captured(head, len(kept)) for head in kept)

    def without_weakest() -> list[int]:
        weakest = min(alive, key=lambda head: captured(head, len(alive)))
        return [head for head in alive if head != weakest]

    while keep <= (len(alive) - 1) * dim and total(without_weakest()) > total(alive):
        alive = without_weakest()
    while keep <= (len(alive) - 1) * dim and width_for(keep, len(alive), dim) < MIN_HEAD_FRACTION * dim:
        alive = without_weakest()
    return alive, width_for(keep, len(alive), dim)


@pytest.mark.parametrize("seed", range(6))
def test_the_table_follows_the_book_for_every_budget(seed):
    heads, dim = 5, 8
    scale = torch.rand(heads, 1, generator=torch.Generator().manual_seed(seed)) * 3
    energies = (random(heads, dim, seed=seed).square().sort(descending=True).values * scale.double().exp()).float()
    scores = random(heads, dim, seed=seed + 50).square().float() * energies.sum(1, keepdim=True)
    table = head_table(energies, scores)
    assert len(table.dim) == heads * dim + 1
    for keep in range(2, heads * dim + 1):
        found = table.alive[keep].nonzero().flatten().tolist(), table.dim[keep].item()
        assert found == heads_by_the_book(energies, scores, keep), keep


@pytest.mark.parametrize("heads", [1, 2, 3, 4, 9])
@pytest.mark.parametrize("strongest", [1.0, 100.0])
def test_heads_of_any_number_hold_the_channels_of_every_budget(heads, strongest):
    """Two heads asked for 27 % lose 27 %, not a whole head, even where one head has nearly all of the energy."""
    dim = 16
    scale = torch.linspace(1, strongest, heads)[:, None]
    energies = torch.logspace(0, -2, dim).expand(heads, -1) * scale
    scores = torch.rand(heads, dim, generator=torch.Generator().manual_seed(0)) * scale
    table = head_table(energies, scores)
    kept = table.alive.sum(1) * table.dim
    asked = torch.arange(heads * dim + 1).clamp_min(2)
    assert ((kept - asked).abs() <= table.alive.sum(1)).all()  # the width of each head is rounded by one channel


def test_a_head_with_few_of_the_best_channels_stays_where_the_others_cannot_hold_the_budget():
    scores = torch.tensor([[4.0, 4.0, 4.0, 4.0], [1.0, 1.0, 1.0, 1.0]])  # of the best five, one is in the second head
    table = head_table(scores, scores)
    assert [rows.tolist() for rows in table.alive[3:7]] == [[True, False], [True, False], [True, True], [True, True]]


@pytest.fixture(scope="module")
def inputs() -> Tensor:
    """Correlated inputs of o_proj (tokens, channels)."""
    channels = HEADS * DIM
    return plain_random(TOKENS, channels) @ (torch.eye(channels) + 0.3 * plain_random(channels, channels, seed=1))


def layer_of(inputs: Tensor, gradients: Tensor) -> LayerCalibration:
    """The statistics of one layer from its inputs of o_proj and the gradients of its outputs (tokens, hidden)."""
    output_map = plain_random(HIDDEN, HEADS, DIM, seed=2)
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
        frequency=torch.arange(DIM // 2).repeat(KV_HEADS, 1),
    )


@pytest.mark.parametrize(("heads", "width"), [([0, 1, 2, 3], 4), ([1, 3], 6), ([0, 1, 3], 2)])
def test_the_error_is_that_of_the_fit_that_slicing_makes(inputs, heads, width):
    """Least squares on the tokens, on the axes of `value_axes`; rows for the ridge keep the map what it was."""
    output_map = plain_random(HIDDEN, HEADS, DIM, seed=2)
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
    gradients = 0.05 * plain_random(TOKENS, HIDDEN, seed=4)
    assert squared_gradient(layer_of(inputs, gradients)) == pytest.approx(0.05**2, rel=0.15)
    assert squared_gradient(layer_of(inputs, 0 * gradients)) == 0


def test_a_whole_module_does_the_damage_of_its_output(inputs):
    """And nothing removed does none."""
    layer = layer_of(inputs, 0.05 * plain_random(TOKENS, HIDDEN, seed=4))
    whole = squared_gradient(layer) * (inputs @ layer.output_map.flatten(1).T).square().sum().item()
    none, some, all_ = attention_damages(layer, (0.0, 0.5, 1.0))
    assert none == pytest.approx(0, abs=1e-4 * whole)
    assert 0.02 * whole < some < all_
    assert all_ == pytest.approx(whole, rel=1e-3)


class Layout(NamedTuple):
    """The key/value heads and rotary frequencies of some query heads."""

    kv_head: Tensor
    frequency: Tensor
    norms: None = None


def test_unrotated_channels_are_dropped_singly():
    """Channels 0 and 3 are a pair that the model rotates; 1, 2, 4 and 5 are single, and the best of them are kept."""
    fisher = torch.tensor([[1.0, 8.0, 0.25, 1.0, 0.5, 4.0]])
    head = torch.tensor([0])
    layout = Layout(head, torch.tensor([[0, UNROTATED, UNROTATED]]))
    assert dropped_fisher(fisher, layout, head, 2) == pytest.approx(1 + 0.25 + 1 + 0.5)  # 8 and 4 are kept
    assert dropped_fisher(fisher, layout, head, 4) == pytest.approx(0.25 + 0.5)
    assert dropped_fisher(fisher, layout, head, 6) == 0


@pytest.mark.parametrize("family", ["llama-gqa", "phi", "smollm3", "qwen3"])
def test_the_score_of_dropped_channels_is_that_of_what_slicing_drops(tiny_case, family):
    """Layers without rotary embedding, with one in part, and with normalised queries, which keep their width."""
    case = tiny_case(family)
    for index, block in enumerate(blocks(case.dense)):
        fisher, heads = case.stats.layers[index].query_fisher, torch.arange(block.attention.heads)
        weights = block.attention.weights()
        # With the scores in place of the queries' weights, a slice says which scores it keeps.
        weights = replace(weights, query=fisher[..., None].expand_as(weights.query))
        for width in range(2, block.attention.dim + 1, 2):
            kept = cut_queries_and_keys(weights, fisher, heads.tolist(), width).query[..., 0]
            dropped = dropped_fisher(fisher, block.attention, heads, width)
            assert dropped == pytest.approx((fisher.sum() - kept.sum()).item(), rel=1e-4, abs=1e-6 * fisher.sum())


def test_dropped_pairs_do_the_damage_of_their_fisher_information(inputs):
    """Two heads share the pairs (0, 3), (1, 4) and (2, 5); a width of 2 keeps the pair with the largest sum."""
    fisher = torch.tensor([[1.0, 2.0, 3.0, 0.0, 0.0, 0.0], [5.0, 0.0, 0.0, 0.0, 1.0, 1.0]])
    both, rotated = torch.tensor([0, 1]), torch.arange(3).repeat(2, 1)
    shared = Layout(torch.tensor([0, 0]), rotated[:1])
    assert dropped_fisher(fisher, shared, both, 2) == pytest.approx(3 + 4)  # 6 is kept
    assert dropped_fisher(fisher, Layout(both, rotated), both, 4) == pytest.approx(1 + 1)
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
