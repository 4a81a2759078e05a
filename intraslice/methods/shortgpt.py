"""ShortGPT (arXiv 2403.03853): whole layers are removed, those that change their input least.

A layer's influence is `1 - cos(layer input, layer output)`, mean over tokens. The number of parameters is that of all
methods: where it asks for a part of a layer, the next one is narrowed as by MoDeGPT. The cap does not limit its ratios.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from intraslice.calibration.stats import CalibrationStats
from intraslice.core.progress import Progress, ProgressCallback, progress_callback
from intraslice.methods.modegpt import MoDeGPT
from intraslice.methods.registry import METHODS, Tokens
from intraslice.modeling.families import Block, blocks, family_of
from intraslice.modeling.hidden_states import HiddenStates, embed
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
    """ShortGPT, and hidden states keep their norm relative to what later layers add (Prune&Comp, arXiv 2507.18212).

    A layer changes the norm of its hidden states by a factor, their mean ratio on the calibration tokens. Without the
    layer, Prune&Comp multiplies all that is written before it by this factor. Norms ignore the scale of their inputs,
    so here all that is written after it is divided instead, and the embeddings stay as they are.
    """

    name = "shortgpt-rescaled"
    label = "ShortGPT, rescaled"
    explanation = "ShortGPT, and the other layers are rescaled so that hidden states keep their norm (Prune&Comp)"

    @torch.no_grad()
    def slice(
        self,
        model: PreTrainedModel,
        plan: SlicePlan,
        stats: CalibrationStats,
        tokens: Tokens,
        *,
        progress: ProgressCallback | bool = True,
    ) -> PreTrainedModel:
        """As the other methods; the dense model also runs on the calibration tokens once."""
        report, last = progress_callback(progress), Progress("slice", len(plan.layers), len(plan.layers))
        sliced = super().slice(model, plan, stats, tokens, progress=report)
        states, factor, parameters = embed(model, tokens), 1.0, dict[nn.Parameter, nn.Parameter]()
        for layer, block, kept in zip(model.model.layers, blocks(sliced), plan.layers, strict=True):
            before = _norms(states)
            states.pass_through_(layer, lambda: report(last))
            if kept.heads or kept.neurons:
                parameters |= _scaled(block, factor, family_of(model.config).norm_offset)
            else:
                factor /= (_norms(states) / before).mean().item()
        return replace_modules(sliced, parameters)


def _norms(states: HiddenStates) -> Tensor:
    return torch.cat([hidden.float().norm(dim=-1).flatten() for hidden in states.hidden])


def _scaled(block: Block, factor: float, norm_offset: float) -> dict[nn.Parameter, nn.Parameter]:
    """The parameters by which a layer writes to the residual stream, so that it writes `factor` times as much."""
    found = dict[nn.Parameter, nn.Parameter]()
    for output, norm in (
        (block.attention.o_proj, block.attention_output_norm),
        (block.mlp.down_proj, block.mlp_output_norm),
    ):
        for old in (output if norm is None else norm).parameters():
            offset = 0.0 if norm is None else norm_offset
            found[old] = nn.Parameter((offset + old) * factor - offset, requires_grad=False)
    return found


METHODS.register(ShortGPT())
METHODS.register(RescaledShortGPT())
