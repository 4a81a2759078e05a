"""Where the variance of a dense layer lies: how many axes each part needs, and which rotary pairs carry its attention.

Read off a calibration alone. Eigenvalues are found when first asked for: those of a wide MLP take a second a layer.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import pandas
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from transformers import PreTrainedModel

from intraslice.calibration.stats import CalibrationStats, LayerStats
from intraslice.core.errors import NumericalError
from intraslice.core.linalg import diagonal_blocks, explained_variance
from intraslice.core.weights import UNROTATED
from intraslice.modeling.families import blocks
from intraslice.planning.ratios import LayerPlan, SlicePlan
from intraslice.slicing.attention import choose_channels

SHARES = (0.90, 0.95, 0.99)


def effective_rank(explained: Float[Tensor, "*batch n"], share: float) -> Int[Tensor, "*batch"]:
    """How many axes hold `share` of the variance, read off cumulated shares (see linalg.explained_variance)."""
    return ((explained < share).sum(-1) + 1).clamp_max(explained.shape[-1])


def _spectrum(moment: Float[Tensor, "*batch n n"]) -> Float[Tensor, "*batch n"]:
    if not torch.isfinite(moment).all():
        raise NumericalError("activation moments are not finite; calibrate in float32, or on other text")
    return explained_variance(torch.linalg.eigvalsh(moment).flip(-1).clamp_min(0)).cpu()


class LayerSpectra:
    """Explained variance of one layer: the share that the first 1..n principal axes hold. All moments are uncentred."""

    def __init__(self, stats: LayerStats, kv_head: Sequence[int]) -> None:
        self._stats = stats
        self._kv_head = torch.tensor(kv_head)

    @cached_property
    def heads(self) -> Float[Tensor, "heads d"]:
        """Each query head's output (what enters `o_proj`) on its own axes."""
        return _spectrum(self._head_moments)

    @cached_property
    def groups(self) -> Float[Tensor, "kv_heads d"]:
        """Outputs of all heads that share a value head, on shared axes: the basis that slicing keeps."""
        moments = self._head_moments
        shared = moments.new_zeros(int(self._kv_head.max()) + 1, *moments.shape[1:])
        return _spectrum(shared.index_add_(0, self._kv_head.to(moments.device), moments))

    @cached_property
    def mlp(self) -> Float[Tensor, " neurons"]:
        """What enters `down_proj`."""
        return _spectrum(self._stats.mlp_moment)

    @cached_property
    def residual(self) -> Float[Tensor, " hidden"]:
        """The residual stream at the layer's input, as a cross-module method sees it: massive tokens own most of it."""
        return _spectrum(self._stats.residual_moment.double()).float()  # a few eigenvalues dwarf all others

    @cached_property
    def directions(self) -> Float[Tensor, " hidden"]:
        """The residual stream with every token scaled to unit length, as the norms that read it see it."""
        return _spectrum(self._stats.direction_moment.double()).float()

    @property
    def _head_moments(self) -> Float[Tensor, "heads d d"]:
        return diagonal_blocks(self._stats.attention_moment, len(self._kv_head))


def layer_spectra(stats: CalibrationStats, layer: int) -> LayerSpectra:
    """The spectra of one layer, each found when it is first read."""
    return LayerSpectra(stats.layers[layer], stats.kv_heads[layer])


def head_ranks(stats: CalibrationStats, share: float = 0.95) -> list[list[int]]:
    """For every layer, how many axes hold `share` of each query head's output."""
    return [effective_rank(layer_spectra(stats, layer).heads, share).tolist() for layer in range(len(stats.layers))]


@dataclass(frozen=True)
class PairEnergies:
    """What each rotary pair (and unrotated channel) of one layer's queries and keys carries, and which of them stay.

    Energy is the mean over tokens of `|q_j k_j|`, summed over both channels of a pair and over the queries that share
    the key head. `angle` is what a pair turns by from one position to the next, in radians.
    """

    energy: Float[Tensor, "kv_heads pairs"]
    kept: Bool[Tensor, "kv_heads pairs"]
    angle: Float[Tensor, " pairs"]
    unrotated: Float[Tensor, "kv_heads singles"]
    unrotated_kept: Bool[Tensor, "kv_heads singles"]


def pair_energies(
    model: PreTrainedModel, stats: CalibrationStats, layer: int, plan: LayerPlan | None = None
) -> PairEnergies:
    """Energies of the dense layer, and what `plan` keeps of them (all of them without a plan).

    Those stay that the loss feels most, which need not be those that carry most.
    """
    attention, layer_stats = blocks(model)[layer].attention, stats.layers[layer]
    products = layer_stats.channel_products / stats.tokens
    energies = products.new_zeros(attention.kv_heads, attention.dim)
    energies = energies.index_add_(0, attention.kv_head, products).cpu().unflatten(-1, (2, -1))
    kept = torch.ones(attention.kv_heads, attention.dim, dtype=torch.bool)
    if plan is not None:
        heads = torch.tensor(plan.heads, dtype=torch.long, device=products.device)
        channels, _ = choose_channels(layer_stats.query_fisher, attention.weights(), heads, plan.dim)
        kept = torch.zeros_like(kept)
        for kv_head, kept_channels in zip(attention.kv_head[heads].unique().tolist(), channels.cpu(), strict=True):
            kept[kv_head, kept_channels] = True
    kept = kept.unflatten(-1, (2, -1))
    frequency = attention.frequency[0].cpu()  # a dense layer has the same pairs in every head
    rotated = frequency != UNROTATED
    return PairEnergies(
        energy=energies.sum(1)[:, rotated],
        kept=kept.all(1)[:, rotated],
        angle=model.model.rotary_emb.inv_freq.float().cpu()[frequency[rotated]],
        unrotated=energies[..., ~rotated].flatten(1),
        unrotated_kept=kept[..., ~rotated].flatten(1),
    )


def spectra_frame(
    stats: CalibrationStats, plan: SlicePlan | None = None, layers: Sequence[int] | None = None
) -> pandas.DataFrame:
    """A row for each part of a layer: width, axes that hold 90, 95 and 99 % of its variance, and what a plan keeps."""
    rows = []
    for layer in range(len(stats.layers)) if layers is None else layers:
        spectra, layer_plan = layer_spectra(stats, layer), None if plan is None else plan.layers[layer]
        heads = () if layer_plan is None else layer_plan.heads
        kv_heads = {stats.kv_heads[layer][head] for head in heads}
        parts: list[tuple[str, Tensor, int | None]] = [
            *(
                (f"head {i}", curve, None if layer_plan is None else layer_plan.dim * (i in heads))
                for i, curve in enumerate(spectra.heads)
            ),
            *(
                (f"value head {i}", curve, None if layer_plan is None else layer_plan.dim * (i in kv_heads))
                for i, curve in enumerate(spectra.groups)
            ),
            ("mlp", spectra.mlp, None if layer_plan is None else layer_plan.neurons),
            ("residual", spectra.residual, None),
            ("directions", spectra.directions, None),
        ]
        for part, curve, kept in parts:
            ranks = {f"rank_{share * 100:.0f}": int(effective_rank(curve, share)) for share in SHARES}
            rows.append({"layer": layer, "part": part, "width": len(curve), **ranks, "kept": kept})
    return pandas.DataFrame(rows).astype({"kept": "Int64"})
