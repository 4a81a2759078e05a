"""One-shot slicing of a layer: all moments come from the dense model's calibration."""

from __future__ import annotations

from collections.abc import Callable
from weakref import ref

import torch
from jaxtyping import Float
from torch import Tensor
from transformers import PreTrainedModel

from intraslice.calibration.stats import CalibrationStats, LayerStats
from intraslice.core.config import NO_RECOVERY
from intraslice.core.linalg import OrderedFactor
from intraslice.core.output_fit import value_axes
from intraslice.core.weights import AttentionWeights, MLPWeights
from intraslice.modeling.attention import SlicedAttention
from intraslice.modeling.families import Block
from intraslice.modeling.mlp import SlicedMLP
from intraslice.modeling.offload import is_offloaded
from intraslice.planning.ratios import LayerPlan, SlicePlan
from intraslice.slicing.attention import OutputMoments, choose_channels, cut_queries_and_keys, fit_output, fuse
from intraslice.slicing.mlp import fitted_moment, keep_best, rank_neurons

Modules = tuple[SlicedAttention, SlicedMLP]
SliceModules = Callable[[Block, LayerPlan, int], Modules]  # of a layer, with its index


def one_shot(model: PreTrainedModel, plan: SlicePlan, stats: CalibrationStats) -> SliceModules:
    """Slices a layer: takes the modules of `stats.sliced_modules` that have the same sizes, and adds new ones to it."""
    shares = plan.recovery == NO_RECOVERY and not is_offloaded(model)  # a recovery trains the modules
    shared = stats.sliced_modules if shares else None

    def slice_modules(block: Block, layer: LayerPlan, index: int) -> Modules:
        keys = (index, 0, layer.dim, *layer.heads), (index, 1, layer.neurons)
        attention, mlp = (shared[key]() if shared and key in shared else None for key in keys)
        if not isinstance(attention, SlicedAttention):
            attention = attention_from_moments(block.attention, layer, stats.layers[index], stats.tokens)
        if not isinstance(mlp, SlicedMLP):
            mlp = mlp_from_stats(block.mlp, layer.neurons, stats, index)
        if shared is not None:
            shared.update(zip(keys, (ref(attention), ref(mlp)), strict=True))
        return attention, mlp

    return slice_modules


def attention_from_moments(dense: SlicedAttention, plan: LayerPlan, stats: LayerStats, tokens: int) -> SlicedAttention:
    """The attention of `plan`, fitted on the dense calibration alone; `dense` itself if nothing is removed."""
    if is_unchanged(dense, plan):
        return dense
    weights = dense.weights()
    heads = torch.tensor(plan.heads, dtype=torch.long, device=weights.query.device)
    channels, frequency = choose_channels(stats.query_fisher, weights, heads, plan.dim)
    cut = cut_queries_and_keys(weights, heads, channels, frequency)
    kept = (heads[:, None] * dense.value_dim + torch.arange(dense.value_dim, device=heads.device)).flatten()
    mean = stats.attention_sum / tokens
    rows = stats.attention_moment.index_select(0, kept)
    moments = OutputMoments(
        kept=rows.index_select(1, kept),
        cross=rows,
        kept_mean=mean[kept],
        dense_mean=mean,
        tokens=tokens,
    )
    return fit_attention(weights, cut, moments, plan.dim, dense.layer_idx)[0]


def fit_attention(
    dense: AttentionWeights, cut: AttentionWeights, moments: OutputMoments, dim: int, layer: int
) -> tuple[SlicedAttention, Float[Tensor, "heads d dim"]]:
    """The sliced attention, and the axes of its heads' outputs."""
    axes = value_axes(moments.kept, cut.output, cut.kv_head, dim)
    output, bias = fit_output(moments, axes[cut.kv_head], dense, cut.output)
    return SlicedAttention(fuse(cut, axes, output, bias), layer), axes[cut.kv_head]


def mlp_from_moments(
    dense: SlicedMLP, width: int, stats: LayerStats, tokens: int, ranked: OrderedFactor | None = None
) -> SlicedMLP:
    """The MLP of `width` neurons, fitted on the dense calibration alone; `dense` itself if nothing is removed.

    `ranked` are its neurons, where an earlier call has ranked them.
    """
    if width == dense.neurons:
        return dense
    weights, mean = dense.weights(), stats.mlp_sum / tokens
    if width == 0:  # in any order
        ranked = OrderedFactor(torch.arange(dense.neurons, device=mean.device), mean.new_empty(dense.neurons, 0))
    ranked = ranked or rank_mlp(weights, stats.mlp_moment, mean, tokens, stats.mlp_fisher)
    return SlicedMLP(keep_best(weights, ranked, mean, width))


def mlp_from_stats(dense: SlicedMLP, width: int, stats: CalibrationStats, layer: int) -> SlicedMLP:
    """As `mlp_from_moments`, with the ranking that `stats` keeps, if it keeps any."""
    moments, rankings = stats.layers[layer], stats.ranked_neurons
    if rankings is not None and layer not in rankings and 0 < width < dense.neurons:
        mean = moments.mlp_sum / stats.tokens
        rankings[layer] = rank_mlp(dense.weights(), moments.mlp_moment, mean, stats.tokens, moments.mlp_fisher)
    return mlp_from_moments(dense, width, moments, stats.tokens, (rankings or {}).get(layer))


def rank_mlp(weights: MLPWeights, moment: Tensor, mean: Tensor, tokens: int, fisher: Tensor) -> OrderedFactor:
    """The neurons of an MLP, best first, from `A^T A` over `tokens` tokens of the inputs of its output map."""
    return rank_neurons(weights, fitted_moment(weights, moment, mean, tokens), fisher=fisher)


def is_unchanged(attention: SlicedAttention, plan: LayerPlan) -> bool:
    """Whether the plan removes nothing from an attention module."""
    return len(plan.heads) == attention.heads and plan.dim == attention.dim
