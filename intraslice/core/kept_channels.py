"""The choice of the query and key channels that a slice keeps. Pure.

The slicing cuts by this choice, and estimators score what it drops.
"""

from collections.abc import Sequence
from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from intraslice.core.weights import UNROTATED

# Kept query/key channels of every kept key/value head, and the rotary frequency of each kept pair.
Chosen = tuple[Int[Tensor, "kv_kept dim"], Int[Tensor, "kv_kept kept_pairs"]]


@runtime_checkable
class HeadLayout(Protocol):
    """What decides which channels may be cut: of `AttentionWeights`, of an attention module, or of its units."""

    @property
    def kv_head(self) -> Int[Tensor, " heads"]: ...

    @property
    def frequency(self) -> Int[Tensor, "kv_heads pairs"]: ...

    @property
    def norms(self) -> object | None: ...


def choose_channels(
    scores: Float[Tensor, "heads d"], layout: HeadLayout, heads: Int[Tensor, " kept"], dim: int
) -> Chosen:
    """Choose the query/key channels of the kept heads.

    `scores[h, j]` is the score of channel j of query head h. Rotated channels are kept in pairs, by the sum over the
    group's kept queries; unrotated ones are single, and pair up in the order of their scores. At full width nothing
    changes, nor where heads are normalised, which needs all of their channels (see `HeadNorms`).
    """
    half, kv_head, frequency = scores.shape[1] // 2, layout.kv_head, layout.frequency
    groups = kv_head[heads].unique()
    if dim == scores.shape[1] or layout.norms is not None:
        return torch.arange(2 * half, device=heads.device).expand(len(groups), -1), frequency[groups]
    channels, frequencies = [], []
    for group in groups:
        group_scores = scores[heads[kv_head[heads] == group]].sum(0)
        first, second = torch.arange(2 * half, device=group_scores.device).split(half)
        unrotated = frequency[group] == UNROTATED
        if unrotated.any():
            singles = torch.cat([first[unrotated], second[unrotated]])
            singles = singles[group_scores[singles].argsort(descending=True, stable=True)].view(-1, 2)
            first, second = first.clone(), second.clone()
            first[unrotated], second[unrotated] = singles[:, 0], singles[:, 1]
        best = (group_scores[first] + group_scores[second]).topk(dim // 2).indices.sort().values
        channels.append(torch.cat([first[best], second[best]]))
        frequencies.append(frequency[group][best])
    return torch.stack(channels), torch.stack(frequencies)


def kept_channels(
    scores: Float[Tensor, "heads d"], layout: HeadLayout, heads: Sequence[int], dim: int
) -> Bool[Tensor, "kv_heads d"]:
    """Which query/key channels of every key/value head `choose_channels` keeps; none of one without kept queries."""
    indices = torch.tensor(heads, dtype=torch.long, device=scores.device)
    kept = torch.zeros(len(layout.frequency), scores.shape[1], dtype=torch.bool, device=scores.device)
    channels, _ = choose_channels(scores, layout, indices, dim)
    kept[layout.kv_head[indices].unique()[:, None], channels] = True
    return kept
