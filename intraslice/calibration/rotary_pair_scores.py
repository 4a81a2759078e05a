"""Scores of rotary pairs of query and key channels: energies, and the sensitivity of the loss. Pure."""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor


def channel_products(
    query: Float[Tensor, "batch heads tokens dim"],
    key: Float[Tensor, "batch kv_heads tokens dim"],
    kv_head: Int[Tensor, " heads"],
) -> Float[Tensor, "heads dim"]:
    """Sum over tokens of `|q_j k_j|`, each query head against the key head it reads."""
    return torch.einsum("bhtd,bhtd->hd", query.float().abs(), key.float().abs()[:, kv_head])


def query_fisher(
    attribution: Float[Tensor, "batch tokens heads dim"], rotated: Bool[Tensor, "heads pairs"]
) -> Float[Tensor, "heads dim"]:
    """Empirical Fisher (diagonal) of masks on query channels, summed over tokens, from `attribution` `q_j dL/dq_j`.

    The two channels of a rotated pair have one mask, `(q_j dL/dq_j + q_j' dL/dq_j')^2`, and half of its value each; it
    is the same before and after the rotation.
    """
    first, second = attribution.flatten(0, 1).chunk(2, dim=-1)
    shared = (first + second).square().sum(0) / 2
    return torch.cat([torch.where(rotated, shared, single.square().sum(0)) for single in (first, second)], dim=-1)
