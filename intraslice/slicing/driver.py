"""Slicing of all layers, in one of two orders. The dense model is not changed.

*Sequential* (the paper's): layer by layer, attention then MLP, each fitted on activations of the already sliced layers.
*One-shot*: all moments come from the dense model's calibration, so that only linear algebra is left.
"""

from itertools import chain

import torch
from transformers import PreTrainedModel

from intraslice.calibration.layerwise import LayerwiseCalibration
from intraslice.calibration.stats import CalibrationStats
from intraslice.checkpoints.format import Shards
from intraslice.core.progress import Progress, ProgressOption, progress_callback
from intraslice.core.threads import map_in_threads
from intraslice.modeling.families import Block, blocks
from intraslice.modeling.hidden_states import Tokens, require_model
from intraslice.modeling.offload import is_offloaded, offload_like_, open_layer, resident
from intraslice.modeling.surgery import replace_modules
from intraslice.planning.ratios import SlicePlan
from intraslice.planning.sizes import LayerPlan
from intraslice.slicing.one_shot import Modules, SliceCache, attention_from_moments, mlp_from_moments, one_shot
from intraslice.slicing.sequential import sequential

MAX_NEURONS = 3072  # of layers that are sliced at once, each in a thread; larger products use several threads well
MAX_WORKERS = 4  # bounds the memory of layers that are sliced at once


@torch.no_grad()
def slice_model(
    model: PreTrainedModel,
    plan: SlicePlan,
    stats: CalibrationStats,
    tokens: Tokens | None = None,
    *,
    cache: SliceCache | None = None,
    progress: ProgressOption = True,
) -> PreTrainedModel:
    """Build the model of `plan`, in the order of its config.

    The sequential order requires `tokens`, the one-shot order reads `stats` alone, and a `cache` that its caller keeps
    for later slices. Embeddings, norms and unchanged modules are shared with the dense model. Several processes each
    run their shard of the tokens through the model, and all build the sliced one. Raises NumericalError where a moment
    is not finite or singular.
    """
    require_model(model)
    total, report = len(plan.layers), progress_callback(progress)
    if plan.config.order == "one-shot":
        slice_modules, workers = one_shot(stats, plan.config.fit, cache), _workers(model, stats)
    elif tokens is not None:
        slice_modules, workers = sequential(model, plan, stats, tokens, report), 1
    else:
        raise ValueError("order 'sequential' requires tokens, got None; pass those of the calibration")
    report(Progress("slice", 0, total))

    def slice_layer(block: Block, layer: LayerPlan, index: int) -> Modules:
        with resident(block.attention), resident(block.mlp):
            attention, mlp = slice_modules(block, layer, index)
        offload_like_(attention, block.attention)
        offload_like_(mlp, block.mlp)
        return attention, mlp

    layers = blocks(model)
    arguments = zip(layers, plan.layers, range(total), strict=True)
    sliced = map_in_threads(slice_layer, arguments, workers, lambda done: report(Progress("slice", done, total)))
    dense = [(block.attention, block.mlp) for block in layers]
    return replace_modules(model, dict(zip(chain(*dense), chain(*sliced), strict=True)))


@torch.no_grad()
def slice_layers(calibration: LayerwiseCalibration, plan: SlicePlan, shards: Shards) -> None:
    """Slice all layers that are not written, in the one-shot order, and write each. The model is not changed."""
    total, tokens, report = len(plan.layers), calibration.tokens.numel(), calibration.progress
    fit = plan.config.fit
    report(Progress("slice", 0, total))
    for index, layer_plan in enumerate(plan.layers):
        if not shards.has_layer(index):
            stats = calibration.stats(index)
            with open_layer(calibration.model, index) as (layer, block):
                layer.self_attn = attention_from_moments(block.attention, layer_plan, stats, tokens, fit)
                layer.mlp = mlp_from_moments(block.mlp, layer_plan.neurons, stats, tokens, fit)
                shards.write_layer(index)
        report(Progress("slice", index + 1, total))


def _workers(model: PreTrainedModel, stats: CalibrationStats) -> int:
    """How many layers are sliced at once from the calibration alone."""
    neurons = max(sizes.neurons for sizes in stats.sizes)
    if model.device.type != "cpu" or is_offloaded(model) or neurons > MAX_NEURONS:
        return 1
    return min(torch.get_num_threads(), MAX_WORKERS)
