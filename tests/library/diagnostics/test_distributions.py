"""Moments, histograms and distances with answers known by hand or from numpy."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from intraslice.diagnostics.shift import Moments, distance, histogram_edges


def described(values, edges, pieces: int = 3):
    moments = Moments()
    for piece in values.chunk(pieces):
        moments.add(piece, edges)
    return moments.distribution(edges)


def test_streamed_moments_are_those_of_all_values():
    values = torch.randn(30, 7, generator=torch.Generator().manual_seed(0)).exp() + 100
    streamed = described(values, torch.linspace(100, 105, 11, dtype=torch.float64))
    plain = values.double().numpy()
    assert streamed.mean == pytest.approx(plain.mean())
    assert streamed.spread == pytest.approx(plain.std())
    assert streamed.kurtosis == pytest.approx(((plain - plain.mean()) ** 4).mean() / plain.var() ** 2 - 3)


@pytest.mark.parametrize(
    ("values", "kurtosis"), [([-1.0, 1.0], -2.0), ([0.0, 0.0, 0.0, 4.0], -2 / 3), ([5.0, 5.0], 0.0)]
)
def test_kurtosis_by_hand(values, kurtosis):
    distribution = described(torch.tensor(values), torch.linspace(-1, 1, 3, dtype=torch.float64), 1)
    assert distribution.kurtosis == pytest.approx(kurtosis)


def test_the_density_is_numpy_s_and_integrates_to_one():
    values = torch.randn(5000, generator=torch.Generator().manual_seed(1))
    edges = histogram_edges(values, 20)
    distribution = described(values, edges)
    clipped = np.clip(values.double().numpy(), edges[0].item(), edges[-1].item())
    expected, _ = np.histogram(clipped, edges.numpy(), density=True)
    assert np.allclose(distribution.density.numpy(), expected, atol=1e-3)
    assert (distribution.density * edges.diff()).sum().item() == pytest.approx(1)


def test_every_value_is_counted_however_far_out():
    moments = Moments()
    edges = torch.linspace(-0.1, 0.3, 5, dtype=torch.float64)
    moments.add(torch.tensor([-1e30, -0.1, 0.0, 0.3, 7.0]), edges)
    assert moments.bins.tolist() == [2, 1, 0, 2]


def test_edges_leave_outliers_out():
    values = torch.cat([torch.linspace(-1, 1, 10_000), torch.tensor([1e6])])
    edges = histogram_edges(values, 8)
    assert len(edges) == 9
    assert -1.01 < edges[0] < -0.99
    assert 0.99 < edges[-1] < 1.01
    assert histogram_edges(torch.ones(4), 2).tolist() == [0.5, 1.0, 1.5]


def test_distance_is_how_far_the_mass_moves():
    edges = torch.linspace(0, 10, 11, dtype=torch.float64)
    still = described(torch.tensor([1.5, 1.5, 4.5, 4.5]), edges, 1)
    moved = described(torch.tensor([3.5, 3.5, 4.5, 4.5]), edges, 1)  # half the mass, two bins on
    assert distance(still, moved) == pytest.approx(1.0)
    assert distance(still, still) == 0.0
    assert distance(moved, still) == distance(still, moved)


def test_nothing_seen_is_nan():
    distribution = Moments().distribution(torch.linspace(0, 1, 3, dtype=torch.float64))
    assert math.isnan(distribution.mean)
    assert distribution.density.tolist() == [0, 0]
