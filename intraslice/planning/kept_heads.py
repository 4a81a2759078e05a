"""Kept heads and their width for every channel budget (paper §3). Pure."""

from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from functools import partial

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn import functional

from intraslice.core.linalg import diagonal_blocks, principal_axes
from intraslice.planning.sizes import LayerSizes

MIN_HEAD_FRACTION = 0.75  # minimum width of a kept head, as a fraction: narrow heads are slow and inaccurate
DIM_MULTIPLE = 2  # of the width of a head, without aligned shapes: rotary embeddings turn pairs of channels


def channel_scores(
    moment: Float[Tensor, "channels channels"], output_energies: Float[Tensor, "heads d"]
) -> Float[Tensor, "heads d"]:
    """`S_jj ||W_o[:, j]||^2`, given the squared norms: the contribution of each channel to the layer's output."""
    return moment.diagonal().view(output_energies.shape) * output_energies


def head_energies(
    moment: Float[Tensor, "channels channels"], scores: Float[Tensor, "heads d"]
) -> Float[Tensor, "heads d"]:
    """Each head's normalised spectrum, descending, times the head's total score."""
    values, _ = principal_axes(diagonal_blocks(moment, len(scores)))
    total = values.sum(-1, keepdim=True)
    return values / total.clamp_min(torch.finfo(values.dtype).tiny) * scores.sum(-1, keepdim=True)


# Why a head is kept or removed; indices of `HeadTable.rule`.
RULES = ("kept", "few of the best channels", "captured energy", "width", "locked", "displaced by a locked head")


@dataclass(frozen=True)
class HeadTable:
    """Row `keep`: the kept heads and their width when `keep` of the H*d channels are kept."""

    alive: Bool[Tensor, "keeps heads"]  # kept heads
    dim: Int[Tensor, " keeps"]
    rule: Int[Tensor, "keeps heads"] | None = None  # in `RULES`; None if it is not known
    # `head_energies`, from which heads are chosen; a profile that is read from a file lacks them.
    energies: Float[Tensor, "heads d"] | None = None


def head_table(energies: Float[Tensor, "heads d"], scores: Float[Tensor, "heads d"]) -> HeadTable:
    """Choose the heads for all channel budgets 0..H*d at once.

    First removes heads with less than a quarter of the mean number of the best `keep` channels, the head with the
    fewest first. Then removes the weakest head while that increases the captured energy, or while heads are narrower
    than `MIN_HEAD_FRACTION` of the dense width. A head is removed only if the others can hold `keep` channels, so that
    no budget loses more than it asks for, up to the rounding of the width. At least one head is kept.
    """
    heads, width = energies.shape
    device = energies.device
    keep = torch.arange(heads * width + 1, device=device).clamp_min(2)
    captured_at = functional.pad(energies.cumsum(-1), (1, 0)).T  # (d + 1, heads): energy in the first p axes
    owner = scores.flatten().argsort(descending=True, stable=True) // width
    among_best = functional.pad(functional.one_hot(owner, heads).cumsum(0), (0, 0, 1, 0))[keep]
    fewest_first = among_best.argsort(dim=1, stable=True).argsort(dim=1)
    removable = (heads * width - keep) // width
    few = (among_best < keep[:, None] / heads / 4) & (fewest_first < removable[:, None])
    alive, rule = ~few, few.long()
    width_for = partial(_width_for, keep, width=width)
    for _ in range(heads - 1):
        count = alive.sum(1)
        dim = width_for(count)
        captured = captured_at[dim]
        weakest = functional.one_hot(captured.masked_fill(~alive, torch.inf).argmin(1), heads).bool()
        fewer = alive & ~weakest
        energy = (captured * alive).sum(1)
        energy_without = (captured_at[width_for((count - 1).clamp_min(1))] * fewer).sum(1)
        grows = energy_without > energy
        others_suffice = keep <= (count - 1) * width
        drop = others_suffice & (grows | (dim < MIN_HEAD_FRACTION * width))
        if not drop.any():
            break
        rule = torch.where(drop[:, None] & weakest, 3 - grows[:, None].long(), rule)
        alive = torch.where(drop[:, None], fewer, alive)
    return HeadTable(alive, width_for(alive.sum(1)), rule, energies)


def _width_for(keep: Int[Tensor, " keeps"], count: Int[Tensor, " keeps"], width: int) -> Int[Tensor, " keeps"]:
    """The multiple of `DIM_MULTIPLE` nearest to `keep` channels in `count` heads, at most the dense `width`."""
    return ((keep / count / DIM_MULTIPLE).round().long() * DIM_MULTIPLE).clamp(DIM_MULTIPLE, width)


def lock_heads(table: HeadTable, kept: Collection[int], removed: Collection[int], width: int) -> HeadTable:
    """The table in which some heads are always `kept` and others always `removed`; `width` is the dense one.

    Every budget has as many heads as before, where the locks allow it: first the locked ones, then those that it had,
    then those that the most budgets keep.
    """
    rows, heads = table.alive.shape
    score = table.alive.sum(0) + (rows + 1) * table.alive  # (keeps, heads)
    score[:, list(kept)] += 3 * rows
    score[:, list(removed)] = -1
    count = table.alive.sum(1).clamp(len(kept), heads - len(removed))
    alive = score.argsort(dim=1, descending=True, stable=True).argsort(dim=1) < count[:, None]
    keep = torch.arange(rows, device=count.device).clamp_min(2)
    rule = torch.zeros_like(score) if table.rule is None else table.rule.clone()
    rule[alive != table.alive] = RULES.index("displaced by a locked head")
    rule[:, [*kept, *removed]] = RULES.index("locked")
    return replace(table, alive=alive, dim=_width_for(keep, count, width), rule=None if table.rule is None else rule)


@dataclass(frozen=True)
class EvenHeads:
    """A set of kept heads, the parameters removed with the others, and the expected increase of the loss."""

    heads: tuple[int, ...]
    kv_heads: int
    removed: int  # parameters
    loss: float


Heads = Float[Tensor, " heads"]


def even_heads(
    sizes: LayerSizes, groups: Int[Tensor, "kv_heads queries"], rank: Heads, importance: Heads
) -> list[EvenHeads]:
    """All candidate sets, from all heads to none, the largest first: the best queries of the best groups.

    `groups` lists the query heads of each key/value head; heads with a higher `rank` are kept first. The queries of a
    group share keys and values and compensate for each other, so that the importance of removed queries is multiplied
    by the removed fraction of their group.
    """
    kv_heads, queries = groups.shape
    best_first = groups.gather(1, rank[groups].argsort(dim=1, descending=True, stable=True))
    dense = sizes.parameters(sizes.heads, kv_heads, sizes.dim, 0)
    choices = [EvenHeads((), 0, dense - sizes.fixed, importance.sum().item())]
    for kept in range(1, queries + 1):
        order = rank[best_first[:, :kept]].sum(1).argsort(dim=0, descending=True, stable=True)
        heads = best_first[order]
        # On SmolLM2 the loss increased by 1.5 times the importance for one query of three, 3.0 for two, 3.4 for all.
        partial_loss = importance[heads[:, kept:]].sum(1) * (queries - kept) / queries
        group_loss = importance[heads].sum(1)
        for count in range(1, kv_heads + 1):
            loss = partial_loss[:count].sum() + group_loss[count:].sum()
            kept_heads = tuple(sorted(heads[:count, :kept].flatten().tolist()))
            removed = dense - sizes.parameters(count * kept, count, sizes.dim, 0)
            choices.append(EvenHeads(kept_heads, count, removed, loss.item()))
    return sorted(choices, key=lambda choice: (choice.removed, choice.loss))


def frontier(choices: Sequence[EvenHeads]) -> list[EvenHeads]:
    """The convex frontier from the first choice on: each step costs more per parameter than the one before."""
    best = [choices[0]]
    for choice in choices[1:]:
        if choice.removed == best[-1].removed:
            continue
        while len(best) > 1 and _slope(best[-2], best[-1]) >= _slope(best[-1], choice):
            best.pop()
        best.append(choice)
    return best


def _slope(fewer: EvenHeads, more: EvenHeads) -> float:
    return (more.loss - fewer.loss) / (more.removed - fewer.removed)
