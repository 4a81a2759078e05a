"""Baselines: whole heads and neurons are removed by a score, with the same parameter budget as IntraSlice.

*magnitude* uses weights alone, without repair. *wanda* (Wanda-sp's score) and *flap* (FLAP's fluctuation, standardised
by layer and ranked over all layers) use the scores of those methods, and IntraSlice's least-squares repair of the
output maps, so that only the choice of units differs.
"""

from abc import abstractmethod
from dataclasses import replace

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from transformers import PreTrainedModel

from intraslice.calibration.stats import CalibrationStats, LayerStats
from intraslice.core.config import GRADIENT_GROUP, SliceConfig
from intraslice.core.fit_config import INTRASLICE_FIT
from intraslice.core.linalg import damp_by_channel
from intraslice.methods.registry import METHODS, OneShotMethod
from intraslice.modeling.attention import SlicedAttention
from intraslice.modeling.families import Block, blocks
from intraslice.modeling.mlp import SlicedMLP
from intraslice.planning.estimators import Importances
from intraslice.planning.kept_heads import HeadTable
from intraslice.planning.ratios import SlicePlan, make_plan
from intraslice.planning.sizes import LayerPlan
from intraslice.slicing.attention import cut_queries_and_keys
from intraslice.slicing.mlp import select_neurons
from intraslice.slicing.one_shot import attention_from_moments, keep_neurons

Scores = tuple[Float[Tensor, " heads"], Float[Tensor, " neurons"]]


class Baseline(OneShotMethod):
    """Keeps the heads and neurons with the highest scores, and repairs the output maps by least squares."""

    uses_bias = True

    @abstractmethod
    def scores(self, block: Block, stats: LayerStats, tokens: int) -> Scores:
        """Scores of a layer's heads and neurons; `stats` are sums over `tokens` tokens."""

    def comparable(self, scores: Float[Tensor, " units"]) -> Float[Tensor, " units"]:
        """A layer's scores on a common scale for all layers: their ranks, so that all layers have the same ratio."""
        return scores.argsort().argsort().float() / len(scores)

    def plan(self, model: PreTrainedModel, stats: CalibrationStats, config: SliceConfig) -> SlicePlan:
        """Heads and neurons by scores. Uses sparsity, bias (default 1) and cap. Raises UserError if out of reach."""
        layers = []
        for block, layer, layer_stats in zip(blocks(model), stats.profile.layers, stats.layers, strict=True):
            heads, neurons = self.scores(block, layer_stats, stats.tokens)
            scores = Importances(self.comparable(heads), self.comparable(neurons))
            table = whole_head_table(heads, layer.sizes.dim)
            layers.append(replace(layer, table=table, importances={"fisher": scores}))  # its unit is also a head
        by_scores = replace(
            config, estimator="fisher", bias=config.bias or 1.0, head_fraction=None, gradient_group=GRADIENT_GROUP
        )
        plan = make_plan(replace(stats.profile, layers=tuple(layers)), by_scores)
        return replace(plan, config=config)

    def parts(self, block: Block, plan: LayerPlan, stats: LayerStats, tokens: int) -> dict[nn.Module, nn.Module]:
        mlp, scores = block.mlp, self.scores(block, stats, tokens)[1]
        if plan.neurons < mlp.neurons:
            mlp = keep_neurons(mlp, best(scores, plan.neurons), stats, tokens, damp_by_channel)
        attention = attention_from_moments(block.attention, plan, stats, tokens, INTRASLICE_FIT)
        return {block.attention: attention, block.mlp: mlp}


class Magnitude(Baseline):
    """Squared weights, without repair."""

    name = "magnitude"
    label = "Magnitude"
    explanation = "removes whole heads and neurons with the smallest squared weights, without refitting"

    def scores(self, block: Block, stats: LayerStats, tokens: int) -> Scores:
        return magnitude_scores(block)

    def parts(self, block: Block, plan: LayerPlan, stats: LayerStats, tokens: int) -> dict[nn.Module, nn.Module]:
        dense, attention, mlp = block.attention, block.attention.weights(), block.mlp.weights()
        no_scores = attention.query.new_zeros(dense.heads, dense.dim)
        cut = cut_queries_and_keys(attention, no_scores, plan.heads, dense.dim)
        kept = best(magnitude_scores(block)[1], plan.neurons)
        narrow = select_neurons(mlp, kept, mlp.down[:, kept], mlp.down_bias)
        return {dense: SlicedAttention(cut, dense.layer_idx), block.mlp: SlicedMLP(narrow)}


class ActivationBaseline(Baseline):
    """Scores by channel of the input of an output map; a head has the sum over its channels."""

    @abstractmethod
    def channel_scores(self, weight: Tensor, moment: Tensor, mean: Tensor, tokens: int) -> Float[Tensor, " channels"]:
        """Scores of the inputs of a map `weight`, by their second moment over `tokens` tokens and their mean."""

    def scores(self, block: Block, stats: LayerStats, tokens: int) -> Scores:
        output, down = block.attention.o_proj.weight, block.mlp.down_proj.weight
        channels = self.channel_scores(output, stats.attention_moment, stats.attention_sum / tokens, tokens)
        neurons = self.channel_scores(down, stats.mlp_moment, stats.mlp_sum / tokens, tokens)
        return channels.view(block.attention.heads, -1).sum(1), neurons


class Wanda(ActivationBaseline):
    """Wanda-sp's score: `sum_i |W_ij| ||X_j||`, summed over the channels of a head."""

    name = "wanda"
    label = "Wanda-sp"
    explanation = (
        "removes whole heads and neurons with the smallest products of weights and activations (Wanda-sp), with "
        "output projections refitted by least squares"
    )

    def channel_scores(self, weight: Tensor, moment: Tensor, mean: Tensor, tokens: int) -> Tensor:
        return weight.float().abs().sum(0) * moment.diagonal().sqrt()


class FLAP(ActivationBaseline):
    """FLAP's score: `Var(X_j) ||W_j||^2`, summed over the channels of a head and standardised in each layer."""

    name = "flap"
    label = "FLAP"
    explanation = (
        "removes whole heads and neurons with the smallest products of activation variance and squared weights "
        "(FLAP), with output projections refitted by least squares"
    )

    def channel_scores(self, weight: Tensor, moment: Tensor, mean: Tensor, tokens: int) -> Tensor:
        variance = (moment.diagonal() / tokens - mean.square()).clamp_min(0)
        return weight.float().square().sum(0) * variance

    def comparable(self, scores: Float[Tensor, " units"]) -> Float[Tensor, " units"]:
        return (scores - scores.mean()) / scores.std().clamp_min(torch.finfo(scores.dtype).tiny)


def best(scores: Float[Tensor, " units"], count: int) -> Int[Tensor, " kept"]:
    """The units with the highest scores, in their order."""
    return scores.argsort(descending=True)[:count].sort().values


def magnitude_scores(block: Block) -> Scores:
    """Squared weights of every head, including its fraction of the key/value head, and of every neuron."""
    attention, mlp = block.attention.weights(), block.mlp.weights()
    shared = attention.key.float().square().sum((1, 2)) + attention.value.float().square().sum((1, 2))
    readers = torch.bincount(attention.kv_head)
    heads = attention.query.float().square().sum((1, 2)) + attention.output.float().square().sum((0, 2))
    neurons = mlp.up.float().square().sum(1) + mlp.down.float().square().sum(0)
    if mlp.gate is not None:
        neurons = neurons + mlp.gate.float().square().sum(1)
    return heads + (shared / readers)[attention.kv_head], neurons


def whole_head_table(scores: Float[Tensor, " heads"], dim: int) -> HeadTable:
    """Kept heads for every channel budget: those with the best scores, at full width, at least one."""
    heads = len(scores)
    count = (torch.arange(heads * dim + 1, device=scores.device) / dim).round().clamp(1, heads)
    rank = scores.argsort(descending=True).argsort()
    return HeadTable(rank < count[:, None], torch.full_like(count, dim, dtype=torch.long))


METHODS.register(Magnitude())
METHODS.register(Wanda())
METHODS.register(FLAP())
