"""Which heads stay for every channel budget, and how wide each of them is (paper §3). Pure."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn import functional

from intraslice.core.linalg import diagonal_blocks, principal_axes

NARROWEST = 0.75  # a kept head is at least this share of the dense head: narrow heads are slow and inaccurate


def channel_scores(
    moment: Float[Tensor, "channels channels"], output_energies: Float[Tensor, "heads d"]
) -> Float[Tensor, "heads d"]:
    """`S_jj ||W_o[:, j]||^2`, given the squared norms: how much of the layer's output each channel carries."""
    return moment.diagonal().view(output_energies.shape) * output_energies


def head_energies(
    moment: Float[Tensor, "channels channels"], scores: Float[Tensor, "heads d"]
) -> Float[Tensor, "heads d"]:
    """Each head's normalised spectrum, descending, times the head's total score."""
    values, _ = principal_axes(diagonal_blocks(moment, len(scores)))
    total = values.sum(-1, keepdim=True)
    return values / total.clamp_min(torch.finfo(values.dtype).tiny) * scores.sum(-1, keepdim=True)


@dataclass(frozen=True)
class HeadTable:
    """Row `keep` answers: when `keep` of the H*d channels stay, which heads stay and how wide is each of them?"""

    alive: Bool[Tensor, "keeps heads"]
    dim: Int[Tensor, " keeps"]


def round_even(count: Float[Tensor, "*any"]) -> Int[Tensor, "*any"]:
    """The nearest even whole number."""
    return (count / 2).round().long() * 2


def head_table(energies: Float[Tensor, "heads d"], scores: Float[Tensor, "heads d"]) -> HeadTable:
    """Decide the heads for every channel budget 0..H*d at once.

    Heads with under a quarter of the mean share of the best `keep` channels go first; then the weakest head goes while
    that grows the captured energy, or while heads are narrower than `NARROWEST` of the dense width. One head stays.
    """
    heads, width = energies.shape
    device = energies.device
    keep = torch.arange(heads * width + 1, device=device).clamp_min(2)
    captured_by = functional.pad(energies.cumsum(-1), (1, 0)).T  # (d + 1, heads): energy in the first p axes
    owner = scores.flatten().argsort(descending=True, stable=True) // width
    among_best = functional.pad(functional.one_hot(owner, heads).cumsum(0), (0, 0, 1, 0))[keep]
    alive = among_best >= keep[:, None] / heads / 4

    def width_for(count: Tensor) -> Tensor:
        return round_even(keep / count).clamp(2, width)

    for _ in range(heads - 1):
        count = alive.sum(1)
        dim = width_for(count)
        captured = captured_by[dim]
        weakest = functional.one_hot(captured.masked_fill(~alive, torch.inf).argmin(1), heads).bool()
        fewer = alive & ~weakest
        now = (captured * alive).sum(1)
        then = (captured_by[width_for((count - 1).clamp_min(1))] * fewer).sum(1)
        drop = (count > 1) & ((then > now) | (dim < NARROWEST * width))
        if not drop.any():
            break
        alive = torch.where(drop[:, None], fewer, alive)
    return HeadTable(alive, width_for(alive.sum(1)))
