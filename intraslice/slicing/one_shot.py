"""One-shot slicing of a layer: all moments come from the dense model's calibration."""

from collections.abc import Callable
from dataclasses import dataclass, field
from weakref import WeakValueDictionary

import torch
from jaxtyping import Float, Int
from torch import Tensor
from transformers import PreTrainedModel

from intraslice.calibration.stats import CalibrationStats, LayerStats
from intraslice.core.fit_config import FitConfig
from intraslice.core.linalg import OrderedFactor, factor_in_order, value_axes
from intraslice.core.weights import AttentionWeights
from intraslice.modeling.attention import SlicedAttention
from intraslice.modeling.families import Block
from intraslice.modeling.mlp import SlicedMLP
from intraslice.modeling.offload import is_offloaded
from intraslice.planning.sizes import LayerPlan
from intraslice.pretrained.memory import available_bytes
from intraslice.slicing.attention import OutputMoments, cut_queries_and_keys, fit_output, fuse
from intraslice.slicing.mlp import fitted_moment, keep_best, rank_neurons

Modules = tuple[SlicedAttention, SlicedMLP]
SliceModules = Callable[[Block, LayerPlan, int], Modules]  # of a layer, with its index
Rankings = dict[tuple[SlicedMLP, FitConfig], OrderedFactor]  # by dense MLP and settings of the fit
ModuleKey = tuple[FitConfig, int, tuple[int, ...]]  # settings of the fit, layer, sizes


@dataclass
class SliceCache:
    """What slices from one calibration share. Neither may the slices be changed, nor the dense model be offloaded."""

    # Neurons of the dense MLPs, best first: the first ones are kept, for any width. As large as the MLPs' moments.
    rankings: Rankings = field(default_factory=dict)
    # Modules by settings of the fit, layer and sizes, while a slice has them.
    attentions: WeakValueDictionary[ModuleKey, SlicedAttention] = field(default_factory=WeakValueDictionary)
    mlps: WeakValueDictionary[ModuleKey, SlicedMLP] = field(default_factory=WeakValueDictionary)

    @classmethod
    def where_it_fits(cls, model: PreTrainedModel) -> "SliceCache | None":
        """A cache, unless the model is offloaded, or its rankings (at 1.5 B 9 GB) would take half the free memory."""
        rankings = sum(4 * layer.mlp.neurons**2 for layer in model.model.layers)
        fits = rankings <= available_bytes(model.device.type) / 2
        return cls() if fits and not is_offloaded(model) else None


def one_shot(stats: CalibrationStats, config: FitConfig, cache: SliceCache | None = None) -> SliceModules:
    """Return a function that slices a layer: it takes the cache's modules of the same sizes, and adds new ones."""
    kept, rankings = (SliceCache(), None) if cache is None else (cache, cache.rankings)

    def slice_modules(block: Block, layer: LayerPlan, index: int) -> Modules:
        moments = stats.layers[index]
        heads, width = (config, index, (layer.dim, *layer.heads)), (config, index, (layer.neurons,))
        if (attention := kept.attentions.get(heads)) is None:
            attention = attention_from_moments(block.attention, layer, moments, stats.tokens, config)
        if (mlp := kept.mlps.get(width)) is None:
            mlp = mlp_from_moments(block.mlp, layer.neurons, moments, stats.tokens, config, rankings)
        kept.attentions[heads], kept.mlps[width] = attention, mlp
        return attention, mlp

    return slice_modules


def attention_from_moments(
    dense: SlicedAttention, plan: LayerPlan, stats: LayerStats, tokens: int, config: FitConfig
) -> SlicedAttention:
    """The attention of `plan`, fitted on the dense calibration alone; `dense` itself if nothing is removed."""
    if is_unchanged(dense, plan):
        return dense
    weights = dense.weights()
    cut = cut_queries_and_keys(weights, stats.channel_scores(config), plan.heads, plan.dim)
    mean = stats.attention_sum / tokens
    heads = torch.tensor(plan.heads, dtype=torch.long, device=mean.device)
    kept = torch.arange(len(mean), device=mean.device).view(dense.heads, -1)[heads].flatten()
    rows = stats.attention_moment.index_select(0, kept)
    moments = OutputMoments(rows.index_select(1, kept), rows, mean[kept], mean, tokens)
    return fit_attention(weights, cut, moments, plan.dim, dense.layer_idx, config)[0]


def fit_attention(
    dense: AttentionWeights, cut: AttentionWeights, moments: OutputMoments, dim: int, layer: int, config: FitConfig
) -> tuple[SlicedAttention, Float[Tensor, "heads d dim"]]:
    """The sliced attention, and the axes of its heads' outputs."""
    is_weighted = config.output_weighted_axes
    axes = value_axes(moments.kept, cut.output, cut.kv_head, dim, is_output_weighted=is_weighted)
    output, bias = fit_output(moments, axes[cut.kv_head], dense, cut, config)
    return SlicedAttention(fuse(cut, axes, output, bias), layer), axes[cut.kv_head]


def mlp_from_moments(
    dense: SlicedMLP,
    width: int,
    stats: LayerStats,
    tokens: int,
    config: FitConfig,
    rankings: Rankings | None = None,
) -> SlicedMLP:
    """The MLP of `width` neurons, fitted on the dense calibration alone; `dense` itself if nothing is removed.

    `rankings` are looked up and added to.
    """
    if width == dense.neurons:
        return dense
    weights, mean = dense.weights(), stats.mlp_sum / tokens
    ranked = None if rankings is None else rankings.get((dense, config))
    if width == 0:  # in any order
        ranked = OrderedFactor(torch.arange(dense.neurons, device=mean.device), mean.new_empty(dense.neurons, 0))
    elif ranked is None:
        fitted = fitted_moment(weights, stats.mlp_moment, mean, tokens)
        ranked = rank_neurons(weights, fitted, stats.mlp_fisher, config)
        if rankings is not None:
            rankings[dense, config] = ranked
    return SlicedMLP(keep_best(weights, ranked, mean, width))


def keep_neurons(
    dense: SlicedMLP, kept: Int[Tensor, " kept"], stats: LayerStats, tokens: int, damped: Callable[[Tensor], Tensor]
) -> SlicedMLP:
    """The MLP with these neurons, whose output map compensates for the others as in `keep_best`.

    Raises NumericalError where the `damped` moment is not finite or singular.
    """
    weights, mean = dense.weights(), stats.mlp_sum / tokens
    moment = damped(fitted_moment(weights, stats.mlp_moment, mean, tokens))
    cut = torch.ones_like(mean, dtype=torch.bool).scatter_(0, kept, False).nonzero().flatten()
    return SlicedMLP(keep_best(weights, factor_in_order(moment, torch.cat([kept, cut])), mean, len(kept)))


def is_unchanged(attention: SlicedAttention, plan: LayerPlan) -> bool:
    """Whether the plan removes nothing from an attention module."""
    return len(plan.heads) == attention.heads and plan.dim == attention.dim
