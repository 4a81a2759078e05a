"""FLAT-LLM (arXiv 2505.23966): principal axes of every head's values, with greedy ratios per layer.

Values and output maps are narrowed along the principal axes of each head's values, queries and keys keep their width,
and MLPs are narrowed by Nystroem approximation. What a layer keeps is proportional to the angle between its input and
its output, and at most everything; the excess is given to the other layers.

Choices that the paper leaves open: query heads of one value head share its axes. The angle of a layer is that of its
mean cosine over tokens. Widths of heads are even; MLPs compensate for the rounding.
"""

import math
from collections.abc import Sequence

import torch

from intraslice.calibration.stats import LayerStats
from intraslice.core.linalg import principal_axes
from intraslice.core.weights import AttentionWeights
from intraslice.methods.layer_ratios import LayerRatioMethod
from intraslice.methods.registry import METHODS
from intraslice.modeling.attention import SlicedAttention
from intraslice.planning.sizes import LayerPlan
from intraslice.slicing.attention import fuse


class FlatLLM(LayerRatioMethod):
    """FLAT-LLM (arXiv 2505.23966); see the docstring of this file."""

    name = "flatllm"
    label = "FLAT-LLM"
    explanation = "FLAT-LLM: principal axes of each head's values, Nystroem for MLPs, greedy ratios per layer"
    narrows_queries = False

    def layer_ratios(self, influence: Sequence[float], mean: float) -> list[float]:
        angles = [math.acos(min(max(1 - change, -1.0), 1.0)) / math.pi for change in influence]
        return [1 - kept for kept in proportional_fractions(angles, 1 - mean)]

    def narrow_attention(self, dense: SlicedAttention, plan: LayerPlan, stats: LayerStats) -> AttentionWeights:
        weights = dense.weights()
        axes = principal_axes(stats.value_moment)[1][..., : plan.dim]
        output = torch.einsum("whd,hdp->whp", weights.output.to(axes.dtype), axes[weights.kv_head])
        return fuse(weights, axes, output.to(weights.output.dtype), weights.output_bias)


def proportional_fractions(weights: Sequence[float], mean: float) -> list[float]:
    """Fractions with this mean, proportional to positive weights where that gives less than 1, and 1 elsewhere."""
    fractions = torch.ones(len(weights), dtype=torch.float64)
    share = torch.tensor(weights, dtype=torch.float64).clamp_min(1e-12)
    free = torch.ones(len(weights), dtype=torch.bool)
    while free.any():
        whole = len(weights) - int(free.sum())
        fractions[free] = share[free] / share[free].sum() * (len(weights) * mean - whole)
        if not (fractions > 1).any():
            break
        free &= fractions < 1
        fractions[~free] = 1.0
    return fractions.tolist()


METHODS.register(FlatLLM())
