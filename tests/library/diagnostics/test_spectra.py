"""Spectra with known answers, and on every family."""

from dataclasses import replace

import pytest
import torch
from torch.testing import assert_close

from intraslice.core.errors import NumericalError
from intraslice.diagnostics.spectra import LayerSpectra, effective_rank, pair_energies, spectra_frame, spectrum


def known(case):
    """The case with moments whose spectra are plain: each head has its own rank, the MLP's variance halves."""
    stats = case.stats
    layer = stats.layers[0]
    heads, dim = layer.channel_products.shape
    diagonal = torch.zeros(heads, dim)
    for head in range(heads):
        diagonal[head, : head % dim + 1] = 1.0
    neurons = len(layer.mlp_sum)
    layer = replace(
        layer,
        attention_moment=torch.diag(diagonal.flatten()),
        mlp_moment=torch.diag(0.5 ** torch.arange(neurons)),
        residual_moment=torch.diag(torch.tensor([99.0] + [1.0 / 53] * 53)),
        direction_moment=torch.eye(54),
    )
    return replace(stats, layers=[layer, *stats.layers[1:]])


def test_known_moments_give_known_ranks_and_the_frame_says_what_a_plan_keeps(case):
    stats = known(case)
    spectra = LayerSpectra(stats, 0)
    assert effective_rank(spectra.heads, 0.99).tolist() == [1, 2, 3, 4, 5, 6, 7, 8, 1]
    assert_close(spectra.heads[3], torch.tensor([0.25, 0.5, 0.75, 1, 1, 1, 1, 1]))
    # Heads 0-2 share a value head: variances 3, 2 and 1 on its first three axes.
    assert_close(spectra.groups[0], torch.tensor([3, 5, 6, 6, 6, 6, 6, 6]) / 6)
    assert_close(spectra.mlp[:3], torch.tensor([0.5, 0.75, 0.875]))
    assert effective_rank(spectra.residual, 0.9) == 1
    assert effective_rank(spectra.directions, 0.9) == 49  # 0.9 * 54 = 48.6
    plan = case.plan()
    frame = spectra_frame(known(case), plan).query("layer == 0").set_index("part")
    assert list(frame["width"]) == [8] * 12 + [132, 54, 54]
    assert frame.loc["mlp", "kept"] == plan.layers[0].neurons
    assert frame.loc["mlp", ["rank_90", "rank_95", "rank_99"]].tolist() == [4, 5, 7]
    for head in range(9):
        kept = plan.layers[0].dim if head in plan.layers[0].heads else 0
        assert frame.loc[f"head {head}", "kept"] == kept
    assert frame["kept"].isna()["residual"]
    assert spectra_frame(known(case))["kept"].isna().all()


def test_a_spectrum_is_the_cumulated_share_of_the_variance_and_its_rank_the_axes_that_reach_one():
    moments = torch.diag_embed(torch.tensor([[3.0, 6.0, 1.0], [0.0, 0.0, 0.0]]))
    assert_close(spectrum(moments), torch.tensor([[0.6, 0.9, 1.0], [1.0, 1.0, 1.0]]))
    explained = torch.tensor([[0.5, 0.9, 0.96, 1.0], [1.0, 1.0, 1.0, 1.0], [0.25, 0.5, 0.75, 1 - 1e-7]])
    assert effective_rank(explained, 0.9).tolist() == [2, 1, 4]
    assert effective_rank(explained, 0.95).tolist() == [3, 1, 4]
    assert effective_rank(explained, 1.0).tolist() == [4, 1, 4]


def test_broken_moments_are_named(case):
    stats = case.stats
    broken = replace(stats.layers[0], mlp_moment=stats.layers[0].mlp_moment * float("nan"))
    with pytest.raises(NumericalError, match="not finite"):
        _ = LayerSpectra(replace(stats, layers=[broken]), 0).mlp


def test_pair_energies_sum_over_a_group_s_queries(case):
    products = torch.zeros(9, 8)
    products[3:6, 2], products[4, 6] = 1.0, 5.0  # pair 2 of the second group: channels 2 and 6
    stats = replace(case.stats, layers=[replace(case.stats.layers[0], channel_products=products)])
    pairs = pair_energies(case.dense, stats, 0, None)
    assert pairs.energy.shape == (3, 4)
    assert_close(pairs.energy[1], torch.tensor([0, 0, 8.0, 0]) / stats.tokens)
    assert_close(pairs.angle, 1e4 ** -(torch.arange(4) / 4))
    assert pairs.kept.all()
    assert pairs.unrotated.shape == (3, 0)


def test_kept_pairs_are_those_of_the_one_shot_slice(family_case):
    plan, model = family_case.plan(0.5), family_case.dense
    sliced = family_case.cut(plan)
    for index, (layer, sliced_layer) in enumerate(zip(plan.layers, sliced.model.layers, strict=True)):
        pairs = pair_energies(model, family_case.stats, index, layer)
        dense = model.model.layers[index].self_attn
        frequency, kv_head = dense.frequency[0], dense.kv_head
        groups = kv_head[torch.tensor(layer.heads)].unique().tolist()
        for group in range(int(kv_head.max()) + 1):
            kept = frequency[frequency >= 0][pairs.kept[group]].tolist()
            expected = sliced_layer.self_attn.frequency[groups.index(group)] if group in groups else torch.tensor([])
            assert kept == expected[expected >= 0].tolist()
            singles = int(pairs.unrotated_kept[group].sum())
            assert len(kept) * 2 + singles == (sliced_layer.self_attn.dim if group in groups else 0)
