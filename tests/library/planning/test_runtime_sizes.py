"""Shapes for a runtime: full-width heads in even groups, widths in whole blocks, and the budget all the same."""

from collections import Counter
from itertools import product

import pytest
import torch
from test_plans import KINDS, MODELS, counted, profile_of

from intraslice.core.config import SliceConfig
from intraslice.planning.kept_heads import EvenHeads, even_heads, frontier
from intraslice.planning.profile import Profile
from intraslice.planning.ratios import SlicePlan, make_plan
from intraslice.planning.sizes import BLOCK, LayerPlan, LayerSizes, block_widths

TINY = LayerSizes(4, heads=4, kv_heads=2, dim=2, neurons=64, gated=True, attention_bias=False, mlp_bias=False, fixed=8)


def runtime(profile: Profile, sparsity: float = 0.3, **config) -> SlicePlan:
    return make_plan(profile, SliceConfig(sparsity, shapes="runtime", **config))


def sizes_of(layer: LayerPlan) -> tuple[int, int, int, int]:
    return len(layer.heads), layer.kv_heads, layer.dim, layer.neurons


def queries_of(plan: SlicePlan, profile: Profile) -> list[set[int]]:
    """The different numbers of queries that the key/value heads of each layer keep."""
    return [
        set(Counter(layer.kv_head[head] for head in own.heads).values())
        for layer, own in zip(profile.layers, plan.layers, strict=True)
    ]


def test_even_heads_and_their_frontier_by_hand():
    """Groups (0, 2) and (1, 3): one query each, or one group whole, or one query of one group."""
    importance = torch.tensor([1.0, 10.0, 3.0, 4.0], dtype=torch.double)
    found = even_heads(TINY, torch.tensor([[0, 2], [1, 3]]), importance, importance)
    query, group = 2 * 4 * 2, 2 * 4 * 2 * 3  # rows and columns of 2 channels, hidden size 4
    assert found == [
        EvenHeads((0, 1, 2, 3), 2, 0, 0.0),
        EvenHeads((1, 2), 2, 2 * query, 1 / 2 + 4 / 2),  # half of either group goes
        EvenHeads((1, 3), 1, group, 4.0),
        EvenHeads((1,), 1, group + query, 4.0 + 4 / 2),
        EvenHeads((), 0, 2 * group, 18.0),
    ]

    def choice(removed: int, loss: float) -> EvenHeads:
        return EvenHeads((), 0, removed, loss)

    choices = [choice(*pair) for pair in ((0, 0.0), (1, 3.0), (2, 2.0), (3, 4.0), (3, 5.0), (4, 6.5), (5, 20.0))]
    assert frontier(choices) == [choice(*pair) for pair in ((0, 0.0), (2, 2.0), (3, 4.0), (4, 6.5), (5, 20.0))]


@pytest.mark.parametrize(("neurons", "widths"), [(64, [64, 32, 0]), (100, [100, 96, 64, 32, 0]), (20, [20, 0])])
def test_widths_are_whole_blocks_or_dense(neurons, widths):
    assert block_widths(neurons) == widths


@pytest.mark.parametrize(("estimator", "bias"), [("pca", None), ("pca", 0.8), ("fisher", 1.2), ("uniform", None)])
@pytest.mark.parametrize("sparsity", [0.0, 0.05, 0.3, 0.6])
def test_nothing_is_padded_and_what_is_asked_is_removed(profile, sparsity, estimator, bias):
    """To half a block of one layer."""
    plan = runtime(profile, sparsity, estimator=estimator, bias=bias)
    assert plan.parameters.sliced_decoder == counted(profile, plan)
    half = BLOCK / 2 * max(layer.sizes.neuron_cost for layer in profile.layers)
    assert abs(plan.removed_fraction - sparsity) * profile.dense_decoder <= (half + 1 if sparsity else 0)
    assert all(len(queries) == 1 for queries in queries_of(plan, profile))
    for layer, own in zip(profile.layers, plan.layers, strict=True):
        assert own.dim == layer.sizes.dim
        assert own.neurons % BLOCK == 0
        assert len(own.heads) % own.kv_heads == 0
        assert own.kv_heads == len({layer.kv_head[head] for head in own.heads})
        ratios = (1 - len(own.heads) / layer.sizes.heads, 1 - own.neurons / layer.sizes.neurons)
        assert (own.attention_ratio, own.mlp_ratio) == pytest.approx(ratios)
        assert max(own.attention_ratio, own.mlp_ratio) <= plan.config.cap + 1e-9


def test_free_plans_stay_as_they_were():
    """Decoder parameters, key/value bytes and some sizes of plans that were made before there were other shapes."""
    plan = make_plan(profile_of(*MODELS["smollm2"]), SliceConfig(0.3))
    assert (plan.parameters.sliced_decoder, plan.kv_bytes_per_token[1]) == (74347776, 37520)
    assert plan.reasons.nominal_sparsity == pytest.approx(0.3066850940990654, rel=1e-12)
    sizes = {index: sizes_of(plan.layers[index]) for index in (0, 10, 29)}
    assert sizes == {0: (3, 3, 48, 312), 10: (8, 3, 56, 1080), 29: (9, 3, 54, 1232)}


@pytest.mark.parametrize("layers", [(TINY,) * 2, (TINY, TINY, LayerSizes(4, 4, 4, 2, 64, True, False, False, 8))])
def test_no_other_heads_lose_less(layers):
    """Against all combinations of even heads: whatever removes more loses more."""
    profile = profile_of(*layers)
    plan = runtime(profile, 0.4, bias=0.2, cap=1.0, estimator="fisher")
    choices = [sets for sets, _ in profile.choices("fisher")]
    pairs = zip(choices, plan.layers, strict=True)
    chosen = [next(choice for choice in own if choice.heads == layer.heads) for own, layer in pairs]
    removed, lost = sum(own.removed for own in chosen), sum(own.loss for own in chosen)
    for others in product(*choices):
        assert sum(own.removed for own in others) <= removed or sum(own.loss for own in others) >= lost


def test_uniform_layers_stay_alike():
    plan = runtime(profile_of(*MODELS["smollm2"]), 0.5, estimator="uniform")
    assert len({sizes_of(layer)[:3] for layer in plan.layers}) == 1
    widths = {layer.neurons for layer in plan.layers}
    assert max(widths) - min(widths) <= BLOCK


@pytest.mark.parametrize("bias", [0.7, 1.0, 1.2])
def test_a_bias_is_the_share_of_neurons_over_the_sparsity(bias):
    """To what the steps of heads leave open."""
    assert runtime(profile_of(*MODELS["smollm2"]), bias=bias).reasons.bias == pytest.approx(bias, abs=0.02)


def test_modules_go_whole_where_the_cap_lets_them():
    profile = profile_of(*MODELS["phi"])
    capped, whole = runtime(profile, 0.7), runtime(profile, 0.7, cap=1.0)
    assert all(layer.heads and layer.neurons for layer in capped.layers)
    gone = [layer for layer in whole.layers if not layer.heads or not layer.neurons]
    assert gone
    for layer in gone:
        assert (layer.attention_ratio == 1) == (not layer.heads) == (layer.kv_heads == 0)
        assert (layer.mlp_ratio == 1) == (layer.neurons == 0)
    assert whole.parameters.sliced_decoder == counted(profile, whole)
    assert whole.removed_fraction == pytest.approx(0.7, abs=1e-3)


@pytest.mark.parametrize("shapes", KINDS)
def test_locked_ratios_stay_take_the_next_size_and_the_rest_makes_up_for_them(profile, shapes):
    locked = ((0, "attention", 0.0), (1, "mlp", 0.13), (2, "attention", 0.5))
    plan = make_plan(profile, SliceConfig(0.3, shapes=shapes, locked=locked))
    assert plan.layers != make_plan(profile, SliceConfig(0.3, shapes=shapes)).layers
    assert plan.layers[0].attention_ratio == 0
    assert plan.layers[0].heads == tuple(range(profile.layers[0].sizes.heads))
    assert plan.layers[1].mlp_ratio == 0.13
    assert abs(plan.layers[1].neurons - 0.87 * profile.layers[1].sizes.neurons) <= BLOCK / 2
    sizes, own = profile.layers[2].sizes, plan.layers[2]
    assert abs(len(own.heads) * own.dim - sizes.channels / 2) <= sizes.dim
    assert plan.removed_fraction == pytest.approx(0.3, abs=1e-3 if shapes == "runtime" else 0.02)


def test_no_size_passes_the_cap(profile):
    plan = runtime(profile, cap=0.5)
    assert all(max(own.mlp_ratio, own.attention_ratio) <= 0.5 for own in plan.layers)
    assert plan.reasons.capped_mlp
    for index in plan.reasons.capped_mlp:
        assert plan.layers[index].mlp_ratio > 0.5 - BLOCK / profile.layers[index].sizes.neurons


@pytest.mark.parametrize("order", ["sequential", "one-shot"])
def test_a_model_is_as_small_as_planned(family_case, order):
    plan = family_case.plan(0.3, order=order, shapes="runtime")
    model = family_case.cut(plan)
    decoder = sum(parameter.numel() for parameter in model.model.layers.parameters())
    assert decoder == plan.parameters.sliced_decoder < plan.parameters.dense_decoder
    for own, layer in zip(plan.layers, model.model.layers, strict=True):
        attention = layer.self_attn
        assert (attention.heads, attention.kv_heads, attention.dim, layer.mlp.neurons) == sizes_of(own)
        assert attention.even_groups
        assert len(attention.rotary_columns) <= 1
    assert torch.isfinite(model(family_case.tokens).logits).all()


@pytest.mark.parametrize("method", ["intraslice", "intraslice+", "magnitude", "wanda", "flap"])
def test_every_method_that_cuts_modules_obeys(case, method):
    plan = case.plan(0.3, method, shapes="runtime")
    assert all(len(queries) == 1 for queries in queries_of(plan, case.stats.profile))
    assert {layer.dim for layer in plan.layers} == {8}
    assert all(layer.neurons % BLOCK == 0 for layer in plan.layers if layer.neurons < 132)
    assert plan.removed_fraction == pytest.approx(0.3, abs=0.03)  # a block of a layer is 0.06 of this model
