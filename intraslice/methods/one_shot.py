"""Base class of methods that slice each layer from the dense model's statistics alone."""

from __future__ import annotations

from abc import abstractmethod

import torch
from torch import nn
from transformers import PreTrainedModel

from intraslice.calibration.stats import CalibrationStats, LayerStats
from intraslice.core.progress import Progress, ProgressCallback, progress_callback
from intraslice.methods.registry import SlicingMethod, Tokens
from intraslice.modeling.families import Block, blocks
from intraslice.modeling.surgery import replace_modules
from intraslice.planning.ratios import LayerPlan, SlicePlan


class OneShotMethod(SlicingMethod[SlicePlan]):
    """Slices layer by layer; a subclass implements `parts`."""

    @abstractmethod
    def parts(self, block: Block, plan: LayerPlan, stats: LayerStats, tokens: int) -> dict[nn.Module, nn.Module]:
        """Replacements of the layer's modules; `stats` are sums over `tokens` tokens."""

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
        """Build the model from the dense statistics alone."""
        report, parts = progress_callback(progress), dict[nn.Module, nn.Module]()
        report(Progress("slice", 0, len(plan.layers)))
        for done, (block, layer, moments) in enumerate(zip(blocks(model), plan.layers, stats.layers, strict=True), 1):
            parts |= self.parts(block, layer, moments, stats.tokens)
            report(Progress("slice", done, len(plan.layers)))
        return replace_modules(model, parts)
