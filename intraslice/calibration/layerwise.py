"""Calibration of a model larger than memory: a forward pass that stores each layer's input, then backward by layer.

The statistics equal those of an ordinary calibration. Each layer's weights are loaded once per pass. It costs one more
forward, and one stored hidden state per token and layer. The moments of all layers are in memory.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
from jaxtyping import Float, Int
from torch import Tensor
from transformers import PreTrainedModel

from intraslice.calibration.hooks import collecting_gradients, collecting_moments
from intraslice.calibration.stats import LayerStats
from intraslice.core.linalg import gradient_of
from intraslice.core.progress import Pause, Progress, ProgressCallback
from intraslice.modeling.families import Block, blocks
from intraslice.modeling.hidden_states import LayerArguments, call_layer, embed, final_norm
from intraslice.modeling.offload import resident

LossGradient = Callable[[PreTrainedModel, Tensor, Tensor, Pause], Tensor]  # model, last hidden states, tokens


def calibrate_layerwise(
    model: PreTrainedModel,
    stats: list[LayerStats],
    tokens: Int[Tensor, "sequences length"],
    loss_gradient: LossGradient,
    progress: ProgressCallback,
) -> None:
    """Fill `stats`, one for each layer, in place; reports after every layer, forward and backward."""
    layers = list(zip(model.model.layers, blocks(model), stats, strict=True))
    total = 2 * len(layers)
    progress(Progress("calibrate", 0, total))
    layer_inputs = []
    with torch.no_grad():
        hidden_states = embed(model, tokens)
    for done, (layer, block, layer_stats) in enumerate(layers, 1):
        layer_inputs.append(list(hidden_states.hidden))
        with torch.no_grad(), resident(layer), collecting_moments(block, layer_stats):
            hidden_states.pass_through_(layer)
        progress(Progress("calibrate", done, total))
    batches = tokens.to(model.device).split([len(hidden) for hidden in hidden_states.hidden])
    pause = partial(progress, Progress("calibrate", len(layers), total))
    gradients = [
        final_gradient(model, hidden, batch, loss_gradient, pause)
        for hidden, batch in zip(hidden_states.hidden, batches, strict=True)
    ]
    for done, (layer, block, layer_stats) in enumerate(reversed(layers), len(layers) + 1):
        with resident(layer):
            _backward_(layer, block, layer_stats, layer_inputs.pop(), hidden_states.arguments, gradients)
        progress(Progress("calibrate", done, total))


def final_gradient(
    model: PreTrainedModel,
    hidden: Float[Tensor, "sequences length hidden"],
    batch: Int[Tensor, "sequences length"],
    loss_gradient: LossGradient,
    pause: Pause,
) -> Float[Tensor, "sequences length hidden"]:
    """Gradient of the loss at the output of the last layer."""
    norm = final_norm(model)
    with torch.enable_grad():
        leaf = hidden.detach().requires_grad_()
        normed = norm(leaf)
    normed.backward(loss_gradient(model, normed, batch, pause))
    return gradient_of(leaf)


def _backward_(
    layer: torch.nn.Module,
    block: Block,
    stats: LayerStats,
    inputs: list[Float[Tensor, "batch tokens hidden"]],
    arguments: list[LayerArguments],
    gradients: list[Float[Tensor, "batch tokens hidden"]],
) -> None:
    """Collect mask gradients of one layer; replaces the `gradients` of its outputs by those of its inputs, in place."""
    done = 0
    for index, (hidden, batch_arguments) in enumerate(zip(inputs, arguments, strict=True)):
        rows = slice(done, done + len(hidden))
        with torch.enable_grad(), collecting_gradients(block, stats, rows):
            leaf = hidden.requires_grad_()
            call_layer(layer, leaf, batch_arguments).backward(gradients[index])
        gradients[index] = gradient_of(leaf)
        done += len(hidden)
