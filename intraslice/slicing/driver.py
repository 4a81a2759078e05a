"""Slicing of all layers, in one of two orders. The dense model is not changed.

*Sequential* (the paper's): layer by layer, attention then MLP, each fitted on activations of the already sliced layers.
*One-shot*: all moments come from the dense model's calibration, so that only linear algebra is left.
"""

from __future__ import annotations

from functools import partial

import torch
from jaxtyping import Int
from torch import Tensor, nn
from transformers import PreTrainedModel

from intraslice.calibration.stats import CalibrationStats
from intraslice.core.config import NO_RECOVERY
from intraslice.core.progress import Progress, ProgressCallback, progress_callback
from intraslice.modeling.families import blocks
from intraslice.modeling.hidden_states import require_model
from intraslice.modeling.offload import is_offloaded, offload_like_, resident
from intraslice.modeling.surgery import replace_modules
from intraslice.planning.ratios import SlicePlan
from intraslice.slicing.one_shot import slice_layer
from intraslice.slicing.sequential import SequentialFit, embed_shard


@torch.no_grad()
def slice_model(
    model: PreTrainedModel,
    plan: SlicePlan,
    stats: CalibrationStats,
    tokens: Int[Tensor, "sequences length"] | None = None,
    *,
    progress: ProgressCallback | bool = True,
) -> PreTrainedModel:
    """Build the model of `plan`, in the order of its config.

    The sequential order requires `tokens`, the one-shot order reads `stats` alone. Embeddings, norms and unchanged
    modules are shared with the dense model. Pass all tokens in every process: each runs its shard of them through the
    model, and all build the sliced one. Raises NumericalError where a moment is not finite or singular.
    """
    require_model(model)
    one_shot, total = plan.config.order == "one-shot", len(plan.layers)
    if not one_shot and tokens is None:
        raise ValueError("order 'sequential' requires tokens, got None; pass those of the calibration")
    report = progress_callback(progress)
    report(Progress("slice", 0, total))
    hidden_states = None if one_shot or tokens is None else embed_shard(model, tokens)
    token_count = 0 if tokens is None else tokens.numel()
    parts: dict[nn.Module, nn.Module] = {}
    shares = plan.recovery == NO_RECOVERY and not is_offloaded(model)  # a recovery trains the modules
    for index, (block, layer) in enumerate(zip(blocks(model), plan.layers, strict=True)):
        with resident(block.attention), resident(block.mlp):
            if hidden_states is None:
                shared = stats.sliced_modules if shares else None
                attention, mlp = slice_layer(block, layer, stats, index, shared)
            else:
                fit = SequentialFit(block, layer, stats.layers[index], hidden_states, token_count, plan.config)
                attention, mlp = fit.slice_(partial(report, Progress("slice", index, total)))
        for dense, sliced in ((block.attention, attention), (block.mlp, mlp)):
            offload_like_(sliced, dense)
            parts[dense] = sliced
        report(Progress("slice", index + 1, total))
    return replace_modules(model, parts)
