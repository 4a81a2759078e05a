"""Shift: zero where nothing changed, whatever the basis; known where the change is known."""

import copy
import math

import numpy as np
import pytest
import torch
from refusing import refused

from intraslice.diagnostics.shift import PLACES, Moments, distance, histogram_edges, massive_tokens, measure_shift
from intraslice.methods.crossmodule import plan_crossmodule, slice_crossmodule

METRICS = ("error", "pooled_error", "mean_shift", "spread_shift", "distance")


def test_an_unsliced_model_has_no_shift(family_case):
    dense = family_case.dense
    report = measure_shift(dense, {"same": dense, "copy": copy.deepcopy(dense)}, family_case.tokens[:3], progress=False)
    frame = report.frame()
    assert len(frame) == 2 * 3 * 3
    assert (frame[list(METRICS)] == 0).all(axis=None)
    assert frame["cosine"].to_numpy() == pytest.approx(1)
    assert report.tokens == 3 * 48


def test_a_change_of_basis_that_is_undone_is_no_shift(cross_module_case):
    """Nothing cut: every module reads and writes in a rotated stream, which the report rotates back."""
    dense = cross_module_case.dense
    plan = plan_crossmodule(dense, slicing=0.0)
    rotated = slice_crossmodule(dense, plan, None, cross_module_case.tokens, progress=False)
    frame = measure_shift(dense, {"rotated": rotated}, cross_module_case.tokens[:3], progress=False).frame()
    assert (frame[["error", "pooled_error"]] < 1e-3).all(axis=None)
    assert (frame[["mean_shift", "spread_shift", "distance"]].abs() < 1e-3).all(axis=None)
    assert (frame["cosine"] > 1 - 1e-4).all()


def shift_at(report, layer: int, place: str):
    return next(shift for shift in report.shifts if (shift.layer, shift.place) == (layer, place))


def test_known_changes_are_measured_as_they_are(case):
    """The first attention writes the opposite, the last MLP twice as much."""
    dense, tokens = case.dense, case.tokens[:2]
    changed = copy.deepcopy(dense)
    changed.model.layers[0].self_attn.o_proj.weight.data *= -1
    report = measure_shift(dense, {"changed": changed}, tokens, progress=False)
    shift = shift_at(report, 0, "attention")
    assert shift.error == pytest.approx(2, rel=1e-5)
    assert shift.pooled_error == pytest.approx(2, rel=1e-5)
    assert shift.cosine == pytest.approx(-1, rel=1e-5)
    assert shift.spread_shift == pytest.approx(0, abs=1e-6)
    distribution = report.distributions["dense", 0, "attention"]
    assert shift.mean_shift == pytest.approx(-2 * distribution.mean / distribution.spread, rel=1e-4)
    assert shift.kurtosis == pytest.approx(distribution.kurtosis, rel=1e-4)

    changed = copy.deepcopy(dense)
    changed.model.layers[2].mlp.down_proj.weight.data *= 2
    report = measure_shift(dense, {"changed": changed}, tokens, progress=False)
    shift = shift_at(report, 2, "mlp")
    assert shift.error == pytest.approx(1, rel=1e-5)
    assert shift.cosine == pytest.approx(1, rel=1e-5)
    assert shift.spread_shift == pytest.approx(1, rel=1e-4)
    assert shift.distance > 0.3  # a Gaussian's would be sqrt(2 / pi)


def test_massive_tokens_stand_out_after_some_block_but_the_last():
    states = {(layer, place): torch.ones(6, 4) for layer in range(3) for place in PLACES}
    assert not massive_tokens(states).any()
    states[1, "residual"] = states[1, "residual"] * torch.tensor([1, 1, 10.1, 1, 9.9, 1])[:, None]
    states[2, "residual"] = states[2, "residual"] * torch.tensor([50, 1, 1, 1, 1, 1])[:, None]
    states[1, "mlp"] = states[1, "mlp"] * torch.tensor([1, 50, 1, 1, 1, 1])[:, None]
    assert massive_tokens(states).tolist() == [False, False, True, False, False, False]


def test_a_massive_token_does_not_hide_what_the_others_suffer(case):
    """One token a window becomes enormous and is left alone; the others' output of a module is dropped."""
    dense, tokens = case.dense, case.tokens[:2].clone()
    dense = copy.deepcopy(dense)
    tokens[tokens == 5] = 6
    tokens[:, 0] = 5
    dense.model.embed_tokens.weight.data[5] *= 1e4
    changed = copy.deepcopy(dense)
    changed.model.layers[0].mlp.down_proj.weight.data.zero_()
    report = measure_shift(dense, {"changed": changed}, tokens, progress=False)
    first = shift_at(report, 0, "residual")
    assert report.massive == 2
    assert first.massive_error < 1e-3 < 0.05 < first.error
    assert first.pooled_error > 0.05


def test_without_massive_tokens_their_numbers_are_nan_and_what_cannot_be_compared_is_named(tiny_case, case):
    phi = tiny_case("phi")
    report = measure_shift(phi.dense, {"same": phi.dense}, phi.tokens[:1], progress=False)
    assert report.massive == 0
    assert all(math.isnan(shift.massive_error) for shift in report.shifts)
    dense = case.dense
    assert "'dense'" in refused(measure_shift, dense, {"dense": dense}, case.tokens)
    cross = slice_crossmodule(dense, plan_crossmodule(dense, slicing=0.2), None, case.tokens, progress=False)
    for layer in cross.model.layers:
        layer.basis_count = 0
    assert "lacks the bases" in refused(measure_shift, dense, {"cross": cross}, case.tokens)


def described(values, edges, pieces: int = 3):
    moments = Moments(edges)
    for piece in values.chunk(pieces):
        moments.add(piece)
    return moments.distribution()


def test_streamed_moments_are_those_of_all_values_edges_leave_outliers_out_and_distance_is_how_far_mass_moves():
    values = torch.randn(30, 7, generator=torch.Generator().manual_seed(0)).exp() + 100
    streamed = described(values, torch.linspace(100, 105, 11, dtype=torch.float64))
    plain = values.double().numpy()
    assert streamed.mean == pytest.approx(plain.mean())
    assert streamed.spread == pytest.approx(plain.std())
    assert streamed.kurtosis == pytest.approx(((plain - plain.mean()) ** 4).mean() / plain.var() ** 2 - 3)
    assert described(torch.tensor([5.0, 5.0]), torch.linspace(-1, 1, 3, dtype=torch.float64), 1).kurtosis == 0
    values = torch.cat([torch.linspace(-1, 1, 10_000), torch.tensor([1e6])])
    edges = histogram_edges(values, 8)
    assert len(edges) == 9
    assert -1.01 < edges[0] < -0.99
    assert 0.99 < edges[-1] < 1.01
    assert histogram_edges(torch.ones(4), 2).tolist() == [0.5, 1.0, 1.5]
    edges = torch.linspace(0, 10, 11, dtype=torch.float64)
    still = described(torch.tensor([1.5, 1.5, 4.5, 4.5]), edges, 1)
    moved = described(torch.tensor([3.5, 3.5, 4.5, 4.5]), edges, 1)  # half the mass, two bins on
    assert distance(still, moved) == pytest.approx(1.0)
    assert distance(still, still) == 0.0
    assert distance(moved, still) == distance(still, moved)


def test_the_density_is_numpy_s_and_integrates_to_one():
    values = torch.randn(5000, generator=torch.Generator().manual_seed(1))
    edges = histogram_edges(values, 20)
    distribution = described(values, edges)
    clipped = np.clip(values.double().numpy(), edges[0].item(), edges[-1].item())
    expected, _ = np.histogram(clipped, edges.numpy(), density=True)
    assert np.allclose(distribution.density.numpy(), expected, atol=1e-3)
    assert (distribution.density * edges.diff()).sum().item() == pytest.approx(1)
