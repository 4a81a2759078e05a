"""Simple rivals: whole heads and neurons go by a score, under the same exact parameter budget as IntraSlice.

*magnitude*: weights alone, nothing repaired. *wanda* (Wanda-sp's score) and *flap* (FLAP's fluctuation, standardised by
layer and ranked over all of them) choose as those methods do, and keep IntraSlice's least-squares repair of the output
maps, so that only the choice differs.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Literal, get_args

import torch
from jaxtyping import Float
from torch import Tensor
from transformers import PreTrainedModel

from intraslice.calibration.stats import CalibrationStats, LayerStats
from intraslice.core.config import GRADIENT_GROUP, SliceConfig
from intraslice.core.errors import UserError
from intraslice.core.progress import Progress, ProgressCallback, progress_callback
from intraslice.methods.registry import METHODS, Method, Tokens
from intraslice.modeling.attention import SlicedAttention
from intraslice.modeling.families import Block, blocks
from intraslice.modeling.mlp import SlicedMLP
from intraslice.modeling.surgery import with_parts
from intraslice.planning.estimators import Importances
from intraslice.planning.head_table import HeadTable
from intraslice.planning.ratios import LayerPlan, SlicePlan, make_plan
from intraslice.slicing.attention import choose_channels, cut_queries_and_keys
from intraslice.slicing.driver import attention_from_moments
from intraslice.slicing.mlp import keep_neurons, select_neurons

Baseline = Literal["magnitude", "wanda", "flap"]
Scores = tuple[Float[Tensor, " heads"], Float[Tensor, " neurons"]]


def magnitude_scores(block: Block) -> Scores:
    """Squared weights of every head, with its share of the key/value head, and of every neuron."""
    attention, mlp = block.attention.weights(), block.mlp.weights()
    shared = attention.key.float().square().sum((1, 2)) + attention.value.float().square().sum((1, 2))
    readers = torch.bincount(attention.kv_head)
    heads = attention.query.float().square().sum((1, 2)) + attention.output.float().square().sum((0, 2))
    neurons = mlp.up.float().square().sum(1) + mlp.down.float().square().sum(0)
    if mlp.gate is not None:
        neurons = neurons + mlp.gate.float().square().sum(1)
    return heads + (shared / readers)[attention.kv_head], neurons


def activation_scores(block: Block, stats: LayerStats, tokens: int, baseline: Baseline) -> Scores:
    """Wanda-sp: `sum_i |W_ij| ||X_j||`. FLAP: `Var(X_j) ||W_j||^2`. Summed over the channels of a head."""

    def by_channel(weight: Tensor, moment: Tensor, total: Tensor) -> Tensor:
        if baseline == "wanda":
            return weight.float().abs().sum(0) * moment.diagonal().sqrt()
        variance = (moment.diagonal() / tokens - (total / tokens).square()).clamp_min(0)
        return weight.float().square().sum(0) * variance

    attention, mlp = block.attention, block.mlp
    channels = by_channel(attention.o_proj.weight, stats.attention_moment, stats.attention_sum)
    return (
        channels.view(attention.heads, -1).sum(1),
        by_channel(mlp.down_proj.weight, stats.mlp_moment, stats.mlp_sum),
    )


def _scores(block: Block, stats: LayerStats, tokens: int, baseline: Baseline) -> Scores:
    if baseline not in get_args(Baseline):
        raise UserError(f"baseline is {baseline!r}; wanted one of {', '.join(get_args(Baseline))}")
    if baseline == "magnitude":
        return magnitude_scores(block)
    return activation_scores(block, stats, tokens, baseline)


def comparable(scores: Float[Tensor, " units"], baseline: Baseline) -> Float[Tensor, " units"]:
    """Scores that may be ranked over all layers: FLAP's are standardised, the others become their rank in the layer.

    Ranks make every layer lose the same share of its units, to within one.
    """
    if baseline == "flap":
        return (scores - scores.mean()) / scores.std().clamp_min(torch.finfo(scores.dtype).tiny)
    return scores.argsort().argsort().float() / len(scores)


def whole_head_table(scores: Float[Tensor, " heads"], dim: int) -> HeadTable:
    """The heads that stay for every channel budget: the best scores, at full width, and one at least."""
    heads = len(scores)
    count = (torch.arange(heads * dim + 1, device=scores.device) / dim).round().clamp(1, heads)
    place = scores.argsort(descending=True).argsort()
    return HeadTable(place < count[:, None], torch.full_like(count, dim, dtype=torch.long))


def plan_baseline(
    model: PreTrainedModel, stats: CalibrationStats, baseline: Baseline, config: SliceConfig
) -> SlicePlan:
    """Which heads and neurons go; `config` gives the sparsity, the bias (1 by default) and the cap.

    Its estimator has no say. Raises UserError for an unknown baseline or a sparsity out of reach.
    """
    layers = []
    for block, layer, layer_stats in zip(blocks(model), stats.profile.layers, stats.layers, strict=True):
        heads, neurons = _scores(block, layer_stats, stats.tokens, baseline)
        scores = Importances(comparable(heads, baseline), comparable(neurons, baseline))
        table = whole_head_table(heads, layer.sizes.dim)
        layers.append(replace(layer, table=table, importances={"fisher": scores}))  # whose unit is the head, too
    by_scores = replace(
        config, estimator="fisher", bias=config.bias or 1.0, head_fraction=None, gradient_group=GRADIENT_GROUP
    )
    plan = make_plan(replace(stats.profile, layers=tuple(layers)), by_scores)
    return replace(plan, config=config)


@torch.no_grad()
def slice_baseline(
    model: PreTrainedModel,
    plan: SlicePlan,
    stats: CalibrationStats,
    baseline: Baseline,
    *,
    progress: ProgressCallback | bool = True,
) -> PreTrainedModel:
    """Build the model of `plan_baseline`. The dense model is untouched."""
    report, parts = progress_callback(progress), dict[torch.nn.Module, torch.nn.Module]()
    report(Progress("slice", 0, len(plan.layers)))
    for done, (block, layer, moments) in enumerate(zip(blocks(model), plan.layers, stats.layers, strict=True), 1):
        scores = _scores(block, moments, stats.tokens, baseline)[1]
        kept = scores.argsort(descending=True)[: layer.neurons].sort().values
        if baseline == "magnitude":
            parts[block.attention] = _cut_attention(block.attention, layer)
            mlp = block.mlp.weights()
            parts[block.mlp] = SlicedMLP(select_neurons(mlp, kept, mlp.down[:, kept], mlp.down_bias))
        else:
            parts[block.attention] = attention_from_moments(block.attention, layer, moments, stats.tokens)
            parts[block.mlp] = _repaired_mlp(block.mlp, moments, stats.tokens, kept)
        report(Progress("slice", done, len(plan.layers)))
    return with_parts(model, parts)


def _cut_attention(dense: SlicedAttention, plan: LayerPlan) -> SlicedAttention:
    weights = dense.weights()
    heads = torch.tensor(plan.heads, dtype=torch.long, device=weights.query.device)
    channels, frequency = choose_channels(weights.query.new_zeros(dense.heads, dense.dim), weights, heads, dense.dim)
    return SlicedAttention(cut_queries_and_keys(weights, heads, channels, frequency), dense.layer_idx)


def _repaired_mlp(dense: SlicedMLP, stats: LayerStats, tokens: int, kept: Tensor) -> SlicedMLP:
    if len(kept) == dense.neurons:
        return dense
    return SlicedMLP(keep_neurons(dense.weights(), stats.mlp_moment, stats.mlp_sum / tokens, tokens, kept))


def _register(baseline: Baseline, label: str, explanation: str) -> None:
    def plan(model: PreTrainedModel, stats: CalibrationStats, config: SliceConfig) -> SlicePlan:
        return plan_baseline(model, stats, baseline, config)

    def slice_(
        model: PreTrainedModel,
        plan: SlicePlan,
        stats: CalibrationStats,
        tokens: Tokens,
        *,
        progress: ProgressCallback | bool = True,
    ) -> PreTrainedModel:
        return slice_baseline(model, plan, stats, baseline, progress=progress)

    METHODS.register(Method(baseline, label, explanation, plan, slice_))


_register("magnitude", "Magnitude", "whole heads and neurons by their weights alone, nothing repaired")
_register("wanda", "Wanda", "by weights times activations (Wanda-sp's score), output maps repaired")
_register("flap", "FLAP", "by how much activations fluctuate (FLAP's score), output maps repaired")
