"""Explained variance of a dense layer's activations, and the energies of its rotary pairs.

Computed from a calibration alone. Spectra are computed on first access: those of a wide MLP take a second per layer.
"""

from dataclasses import dataclass
from functools import cached_property

import pandas
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from transformers import PreTrainedModel

from intraslice.calibration.stats import CalibrationStats
from intraslice.core.errors import NumericalError
from intraslice.core.kept_channels import kept_channels
from intraslice.core.linalg import by_kv_head, diagonal_blocks
from intraslice.core.weights import UNROTATED
from intraslice.modeling.families import blocks, rotary_frequencies
from intraslice.planning.ratios import SlicePlan
from intraslice.planning.sizes import LayerPlan

FRACTIONS = (0.90, 0.95, 0.99)  # of the variance


def effective_rank(explained: Float[Tensor, "*batch n"], fraction: float) -> Int[Tensor, "*batch"]:
    """Number of axes with `fraction` of the variance, from the cumulative fractions of a spectrum."""
    return ((explained < fraction).sum(-1) + 1).clamp_max(explained.shape[-1])


def spectrum(moment: Float[Tensor, "*batch n n"]) -> Float[Tensor, "*batch n"]:
    """Cumulative fraction of the variance on the first 1..n principal axes (all ones where the variance is 0)."""
    if not torch.isfinite(moment).all():
        raise NumericalError("activation moments are not finite; calibrate in float32, or on other text")
    values = torch.linalg.eigvalsh(moment).flip(-1).clamp_min(0)
    total = values.sum(-1, keepdim=True)
    return torch.where(total > 0, values.cumsum(-1) / total.clamp_min(torch.finfo(values.dtype).tiny), 1.0).cpu()


class LayerSpectra:
    """Explained variance of one layer: cumulative fractions over 1..n principal axes. All moments are uncentred."""

    def __init__(self, stats: CalibrationStats, layer: int) -> None:
        self._stats, self._kv_head = stats.layers[layer], stats.kv_heads[layer]

    @cached_property
    def heads(self) -> Float[Tensor, "heads d"]:
        """Each query head's output (input of `o_proj`) on its own axes."""
        return spectrum(self._head_moments)

    @cached_property
    def groups(self) -> Float[Tensor, "kv_heads d"]:
        """Outputs of the heads that share a value head, on shared axes, which are the basis for slicing."""
        moments = self._head_moments
        return spectrum(by_kv_head(moments, torch.tensor(self._kv_head, device=moments.device)))

    @cached_property
    def mlp(self) -> Float[Tensor, " neurons"]:
        """Input of `down_proj`."""
        return spectrum(self._stats.mlp_moment)

    @cached_property
    def residual(self) -> Float[Tensor, " hidden"]:
        """The residual stream at the layer's input, as in cross-module methods; massive tokens dominate it."""
        return spectrum(self._stats.residual_moment.double()).float()  # a few eigenvalues dominate

    @cached_property
    def directions(self) -> Float[Tensor, " hidden"]:
        """The residual stream with every token scaled to unit length, as by the norms."""
        return spectrum(self._stats.direction_moment.double()).float()

    @property
    def _head_moments(self) -> Float[Tensor, "heads d d"]:
        return diagonal_blocks(self._stats.attention_moment, len(self._kv_head))


@dataclass(frozen=True)
class PairEnergies:
    """Energy of each rotary pair (and unrotated channel) of one layer's queries and keys, and which ones are kept.

    Energy is the mean over tokens of `|q_j k_j|`, summed over both channels of a pair and over the queries that share
    the key head. `angle` is the rotation of a pair from one position to the next, in radians.
    """

    energy: Float[Tensor, "kv_heads pairs"]
    kept: Bool[Tensor, "kv_heads pairs"]
    angle: Float[Tensor, " pairs"]
    unrotated: Float[Tensor, "kv_heads singles"]
    unrotated_kept: Bool[Tensor, "kv_heads singles"]


def pair_energies(model: PreTrainedModel, stats: CalibrationStats, layer: int, plan: LayerPlan | None) -> PairEnergies:
    """Energies of the dense layer, and the pairs that `plan` keeps, by the sensitivity of the loss; all without one."""
    attention, layer_stats = blocks(model)[layer].attention, stats.layers[layer]
    products = layer_stats.channel_products / stats.tokens
    energies = by_kv_head(products, attention.kv_head).cpu().unflatten(-1, (2, -1))
    kept = torch.ones(attention.kv_heads, attention.dim, dtype=torch.bool)
    if plan is not None:
        kept = kept_channels(layer_stats.query_fisher, attention, plan.heads, plan.dim).cpu()
    kept = kept.unflatten(-1, (2, -1))
    frequency = attention.frequency[0].cpu()  # a dense layer has the same pairs in every head
    rotated = frequency != UNROTATED
    return PairEnergies(
        energy=energies.sum(1)[:, rotated],
        kept=kept.all(1)[:, rotated],
        angle=rotary_frequencies(model, layer)[frequency[rotated]],
        unrotated=energies[..., ~rotated].flatten(1),
        unrotated_kept=kept[..., ~rotated].flatten(1),
    )


def spectra_frame(stats: CalibrationStats, plan: SlicePlan | None = None) -> pandas.DataFrame:
    """One row per part of a layer: width, axes for 90, 95 and 99 % of its variance, and the width that `plan` keeps."""
    rows = []
    for layer in range(len(stats.layers)):
        spectra, kept = LayerSpectra(stats, layer), None if plan is None else plan.layers[layer]
        heads, dim, neurons = (kept.heads, kept.dim, kept.neurons) if kept else ((), None, None)
        kv_heads = {stats.kv_heads[layer][head] for head in heads}
        parts: list[tuple[str, Tensor, int | None]] = [
            *((f"head {i}", row, dim and dim * (i in heads)) for i, row in enumerate(spectra.heads)),
            *((f"value head {i}", row, dim and dim * (i in kv_heads)) for i, row in enumerate(spectra.groups)),
            ("mlp", spectra.mlp, neurons),
            ("residual", spectra.residual, None),
            ("directions", spectra.directions, None),
        ]
        for part, curve, width in parts:
            ranks = {f"rank_{fraction * 100:.0f}": int(effective_rank(curve, fraction)) for fraction in FRACTIONS}
            rows.append({"layer": layer, "part": part, "width": len(curve), **ranks, "kept": width})
    return pandas.DataFrame(rows).astype({"kept": "Int64"})
