"""ShortGPT (arXiv 2403.03853): whole layers are removed, those that change their input least.

A layer's influence is `1 - cos(layer input, layer output)`, mean over tokens. The number of parameters is that of all
methods: where it asks for a part of a layer, the next one is narrowed as by MoDeGPT. The cap does not limit its ratios.

Hidden states grow from layer to layer, so after a removed layer they are too small for what later layers add.
`shortgpt-rescaled` makes up for that, as Prune&Comp (arXiv 2507.18212) does.
"""

from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import nn
from transformers import PreTrainedModel

from intraslice.calibration.stats import CalibrationStats, LayerStats
from intraslice.core.progress import ProgressOption
from intraslice.methods.modegpt import MoDeGPT
from intraslice.methods.registry import METHODS
from intraslice.modeling.families import blocks, family_of
from intraslice.modeling.hidden_states import Tokens
from intraslice.modeling.residual import writer_of
from intraslice.modeling.surgery import replace_modules
from intraslice.planning.ratios import SlicePlan


class ShortGPT(MoDeGPT):
    """ShortGPT (arXiv 2403.03853); see the docstring of this file."""

    name = "shortgpt"
    label = "ShortGPT"
    explanation = "ShortGPT: removes whole layers, those that change their input least"
    uses_cap = False

    def layer_ratios(self, influence: Sequence[float], mean: float) -> list[float]:
        ratios, left = [0.0] * len(influence), mean * len(influence)
        for layer in sorted(range(len(influence)), key=influence.__getitem__):
            ratios[layer] = min(max(left, 0.0), 1.0)
            left -= 1
        return ratios

    def highest_mean(self, influence: Sequence[float], cap: float) -> float:
        return 1.0


class RescaledShortGPT(ShortGPT):
    """ShortGPT whose hidden states after removed layers have the dense norm, relative to what later layers add.

    Prune&Comp scales the embedding and all output maps before a gap up. Here those after it are scaled down, by the
    same factor: the next norm makes both the same function, and this one leaves a tied head as it is.
    """

    name = "shortgpt-rescaled"
    label = "ShortGPT, rescaled"
    explanation = "ShortGPT, with later output projections scaled so that hidden states keep their norm (Prune&Comp)"

    @torch.no_grad()
    def slice(
        self,
        model: PreTrainedModel,
        plan: SlicePlan,
        stats: CalibrationStats,
        tokens: Tokens,
        *,
        progress: ProgressOption = True,
    ) -> PreTrainedModel:
        sliced = super().slice(model, plan, stats, tokens, progress=progress)
        scales, parts = [1.0], dict[nn.Parameter, nn.Parameter]()
        for layer, (before, after) in zip(plan.layers, pairwise(map(typical_norm, stats.layers)), strict=False):
            scales.append(scales[-1] * (1.0 if layer.heads or layer.neurons else before / after))
        for block, scale in zip(blocks(sliced), scales, strict=True):
            outputs = (block.attention, block.attention_output_norm), (block.mlp, block.mlp_output_norm)
            for module, norm in outputs if scale != 1 else ():  # else the dense tensors
                offset = 0.0 if norm is None else family_of(model.config).norm_offset
                for old in writer_of(module).parameters() if norm is None else norm.parameters():
                    value = scale * (old.float() + offset) - offset
                    parts[old] = nn.Parameter(value.to(old.dtype), requires_grad=False)
        return replace_modules(sliced, parts)


def typical_norm(layer: LayerStats) -> float:
    """The norm of most hidden states before a layer; the few massive tokens count little.

    Per channel, the energy of the states by that of the states scaled to unit length; the median over the channels.
    """
    energy, directions = layer.residual_moment.diagonal(), layer.direction_moment.diagonal()
    return (energy / directions.clamp_min(torch.finfo(directions.dtype).tiny)).median().sqrt().item()


METHODS.register(ShortGPT())
METHODS.register(RescaledShortGPT())
