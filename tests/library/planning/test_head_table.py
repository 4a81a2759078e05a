"""Scores, energies and the three rules that decide which heads go, by hand and by the book."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

from intraslice.planning.head_table import MIN_HEAD_FRACTION, channel_scores, head_energies, head_table


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


# Scores and energies


def test_channel_score_is_energy_times_squared_column_norm():
    moment = torch.diag(torch.tensor([2.0, 3.0, 5.0, 7.0]))
    output = torch.tensor([[[1.0, 0.0], [2.0, 1.0]], [[1.0, 4.0], [0.0, 1.0]]])  # columns' norms^2: 2, 16, 4, 2
    assert_close(channel_scores(moment, output.square().sum(0)), torch.tensor([[4.0, 48.0], [20.0, 14.0]]))


def test_head_energy_is_the_normalised_spectrum_times_the_heads_score():
    moment = torch.zeros(4, 4)
    moment[:2, :2] = torch.tensor([[2.0, 1.0], [1.0, 2.0]])  # eigenvalues 3 and 1
    moment[:2, 2:] = moment[2:, :2] = 0.5  # between heads: does not count
    moment[3, 3] = 6.0
    energies = head_energies(moment, torch.tensor([[4.0, 4.0], [1.0, 9.0]]))
    assert_close(energies, torch.tensor([[6.0, 2.0], [10.0, 0.0]]))


def test_a_silent_head_has_no_energy():
    assert_close(head_energies(torch.zeros(4, 4), torch.zeros(2, 2)), torch.zeros(2, 2))


# Heads


def width_for(keep: int, count: int, dim: int) -> int:
    return min(max(round(keep / count / 2) * 2, 2), dim)


def heads_by_the_book(energies: Tensor, scores: Tensor, keep: int) -> tuple[list[int], int]:
    """METHOD's three rules, one after the other, in plain loops."""
    heads, dim = energies.shape
    best = scores.flatten().argsort(descending=True, stable=True)[:keep].tolist()
    alive = [h for h in range(heads) if sum(channel // dim == h for channel in best) >= keep / heads / 4]

    def captured(head: int, count: int) -> float:
        return energies[head, : width_for(keep, count, dim)].sum().item()

    def total(kept: list[int]) -> float:
        return sum(captured(head, len(kept)) for head in kept)

    def without_weakest() -> list[int]:
        weakest = min(alive, key=lambda head: captured(head, len(alive)))
        return [head for head in alive if head != weakest]

    while len(alive) > 1 and total(without_weakest()) > total(alive):
        alive = without_weakest()
    while len(alive) > 1 and width_for(keep, len(alive), dim) < MIN_HEAD_FRACTION * dim:
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
        assert (table.alive[keep].nonzero().flatten().tolist(), table.dim[keep].item()) == heads_by_the_book(
            energies, scores, keep
        ), keep


@pytest.mark.parametrize("seed", range(3))
def test_every_row_is_even_wide_and_within_the_head(seed):
    energies = random(7, 16, seed=seed).square().sort(descending=True).values
    table = head_table(energies, random(7, 16, seed=seed + 9).square())
    kept = table.alive.sum(1)
    assert (kept >= 1).all()
    assert (table.dim % 2 == 0).all()
    assert ((table.dim >= 2) & (table.dim <= 16)).all()
    assert ((table.dim >= MIN_HEAD_FRACTION * 16) | (kept == 1)).all()  # the 3/4 rule
    assert table.alive[-1].all()  # nothing asked, nothing dropped
    assert table.dim[-1] == 16


def test_a_head_under_a_quarter_of_the_mean_share_goes_first():
    energies = torch.tensor([[4.0, 4.0, 4.0, 4.0]] * 3)
    scores = torch.tensor([[9.0, 9.0, 9.0, 9.0], [8.0, 8.0, 8.0, 8.0], [1.0, 1.0, 1.0, 1.0]])
    assert head_table(energies, scores).alive[8].tolist() == [True, True, False]  # none of the best 8 is in head 2
    assert head_table(energies, scores).alive[10].tolist() == [True, True, True]  # 2 of 10 is over 10 / 3 / 4


FLAT = [5.0] * 8


@pytest.mark.parametrize(("third", "stays"), [(25.0, True), (6.0, False)])
def test_a_weak_head_goes_where_that_captures_more(third, stays):
    """18 channels: three heads of 6 capture 30 + 30 + third, two of 8 capture 40 + 40."""
    energies = torch.tensor([FLAT, FLAT, [third] + [0.0] * 7])
    scores = torch.tensor([FLAT, FLAT, [9.0, 9.0] + [0.0] * 6])  # 2 of the best 18: over a quarter of the mean share
    table = head_table(energies, scores)
    assert table.alive[18].tolist() == [True, True, stays]
    assert table.dim[18] == (6 if stays else 8)


def test_narrow_heads_go_even_where_that_captures_less():
    """12 channels: three heads of 4 capture 60, two of 6 only 40, but 4 is below three quarters of 8."""
    energies = torch.tensor([[10.0, 10.0] + [0.0] * 6] * 3)
    table = head_table(energies, energies + torch.tensor([[2.0], [0.0], [1.0]]))
    assert table.alive[12].sum() == 2
    assert table.dim[12] == 6
