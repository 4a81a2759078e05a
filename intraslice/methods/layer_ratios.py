"""Base class of methods that give each layer one ratio, by how much the layer changes its input.

MLPs by Nystroem approximation: the neurons with the highest ridge leverage scores are kept, and the output map
compensates for the others.
"""

from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import replace

import torch
from jaxtyping import Float
from torch import Tensor, nn
from transformers import PreTrainedModel

from intraslice.calibration.stats import CalibrationStats, LayerStats
from intraslice.core.config import ModuleKind, SliceConfig
from intraslice.core.fit_config import INTRASLICE_FIT
from intraslice.core.linalg import cholesky, damp
from intraslice.core.weights import AttentionWeights
from intraslice.methods.registry import OneShotMethod
from intraslice.modeling.attention import SlicedAttention
from intraslice.modeling.families import Block
from intraslice.planning.baseline_plans import bisect_count
from intraslice.planning.ratios import SlicePlan, cap_ratios, plan_of_sizes, require_locked_layers
from intraslice.planning.sizes import LayerPlan, LayerSizes, Reasons, neurons_kept
from intraslice.slicing.one_shot import attention_from_moments, keep_neurons


class LayerRatioMethod(OneShotMethod):
    """Narrows heads and MLPs of a layer by the same ratio; all heads are kept, unless the ratio is 1."""

    uses_shapes = False  # its heads are narrower

    @abstractmethod
    def layer_ratios(self, influence: Sequence[float], mean: float) -> list[float]:
        """Ratios of all layers with this mean, uncapped; `influence`: mean of `1 - cos(input, output)` over tokens."""

    def highest_mean(self, influence: Sequence[float], cap: float) -> float:
        """The mean at which all layers have reached the cap."""
        return 1.0

    @abstractmethod
    def narrow_attention(self, dense: SlicedAttention, plan: LayerPlan, stats: LayerStats) -> AttentionWeights:
        """The weights of all heads with `plan.dim` channels."""

    def plan(self, model: PreTrainedModel, stats: CalibrationStats, config: SliceConfig) -> SlicePlan:
        """Heads and neurons of every layer. Uses sparsity, cap and locks. Raises UserError if they are out of reach."""
        require_locked_layers(config, len(stats.sizes))
        sizes = [replace(size, whole_queries=size.whole_queries or not self.narrows_queries) for size in stats.sizes]
        influence = [layer.influence.item() / stats.tokens for layer in stats.layers]
        cap = config.cap if self.uses_cap else 1.0
        locked_ratios = {(layer, module): ratio for layer, module, ratio in config.ratio_locks}

        def ratios(module: ModuleKind, mean: float) -> list[float]:
            capped = cap_ratios(self.layer_ratios(influence, mean), [size.channels for size in sizes], cap)
            return [locked_ratios.get((index, module), ratio) for index, ratio in enumerate(capped)]

        def layers(mean: float, attention: list[float] | None = None) -> list[LayerPlan]:
            return list(map(narrowed, sizes, attention or ratios("attention", mean), ratios("mlp", mean)))

        def count(mean: float, attention: list[float] | None = None) -> int:
            return sum(plan.parameters(size) for size, plan in zip(sizes, layers(mean, attention), strict=True))

        target = (1 - config.sparsity) * sum(size.dense_parameters for size in sizes)
        highest = self.highest_mean(influence, cap) if config.sparsity else 0.0
        kept = layers(bisect_count(count, target, highest))
        attention = [plan.attention_ratio for plan in kept]
        if count(highest, attention) <= target <= count(0.0, attention):
            # Widths of heads change in coarse steps; neurons compensate.
            kept = layers(bisect_count(lambda mean: count(mean, attention), target, highest), attention)
        reasons = Reasons(config.sparsity, 1.0, None, None, (), ())
        return plan_of_sizes(config, kept, reasons, sizes, stats.other_parameters, stats.bytes_per_value)

    def parts(self, block: Block, plan: LayerPlan, stats: LayerStats, tokens: int) -> dict[nn.Module, nn.Module]:
        parts = dict[nn.Module, nn.Module]()
        attention, mlp = block.attention, block.mlp
        if not plan.heads:
            # The empty attention keeps its output bias, if it has one.
            parts[attention] = attention_from_moments(attention, plan, stats, tokens, INTRASLICE_FIT)
        elif plan.dim < attention.dim:
            parts[attention] = SlicedAttention(self.narrow_attention(attention, plan, stats), attention.layer_idx)
        if plan.neurons < mlp.neurons:
            kept = leverage_scores(stats.mlp_moment).topk(plan.neurons).indices.sort().values
            parts[mlp] = keep_neurons(mlp, kept, stats, tokens, damp)
        return parts


def narrowed(size: LayerSizes, attention: float, mlp: float) -> LayerPlan:
    """The layer with heads and MLP narrowed by these ratios; without heads where that of attention is 1."""
    neurons = neurons_kept(size.neurons, mlp)
    if attention == 1:
        return LayerPlan(attention, mlp, (), 0, size.dim, neurons)
    dim = min(max(2 * round(size.dim * (1 - attention) / 2), 2), size.dim)
    return LayerPlan(attention, mlp, tuple(range(size.heads)), size.kv_heads, dim, neurons)


def leverage_scores(moment: Float[Tensor, "n n"]) -> Float[Tensor, " n"]:
    """Ridge leverage scores `[C (C + ridge)^-1]_jj`: how little the others explain each neuron (Nystroem, type I)."""
    moment = moment.double()
    damped = damp(moment)
    ridge = damped.diagonal() - moment.diagonal()  # C (C + ridge)^-1 = 1 - ridge (C + ridge)^-1
    return (1 - ridge * torch.cholesky_inverse(cholesky(damped)).diagonal()).to(torch.float32)
