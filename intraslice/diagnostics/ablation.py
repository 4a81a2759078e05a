"""Ablations of cross-module slicing: which part of it causes the damage? The residual stream keeps its full width.

Each `Ablation` projects one kind of activation of the dense model and removes no parameters. As in cross-module
slicing, the axes of each layer come from the hidden states after the projections before it. On SmolLM2 at width 432 of
576, projecting the modules' outputs ("writes") raises perplexity 9-fold, inputs and outputs 7-fold; with axes of the
dense model's hidden states 5.5-fold and 13-fold.
"""

from typing import Literal, get_args

import torch
from jaxtyping import Float
from torch import Tensor, nn
from transformers import PreTrainedModel

from intraslice.core.checks import integer, one_of
from intraslice.core.progress import Progress, ProgressOption, progress_callback
from intraslice.evaluation.perplexity import perplexity
from intraslice.modeling import residual
from intraslice.modeling.families import blocks
from intraslice.modeling.hidden_states import HiddenStates, Tokens, Windows, embed
from intraslice.modeling.residual import SlicedModule, centre
from intraslice.modeling.surgery import frozen_linear, replace_modules

# What is projected: outputs of modules on their own principal axes; inputs on those of the hidden state; inputs and
# outputs; outputs on those of the hidden state after the module.
Ablation = Literal["outputs", "reads", "reads and writes", "writes"]
ABLATIONS: tuple[Ablation, ...] = get_args(Ablation)
Parts = dict[nn.Module, nn.Module]
Projection = Float[Tensor, "hidden hidden"]


def ablated_model(
    model: PreTrainedModel, ablation: Ablation, width: int, tokens: Tokens, *, progress: ProgressOption = True
) -> PreTrainedModel:
    """A canonicalised dense model with one kind of activation projected on `width` axes, and an uncut residual stream.

    The output of the last module is only projected by "outputs", since the head reads it in the dense basis. Modules
    without a projection are shared with the dense model. Costs a forward over `tokens`; `progress` counts layers.
    Raises UserError for an unknown ablation or a width that is not from 1 to the hidden size.
    """
    report = progress_callback(progress)
    one_of("ablation", ablation, ABLATIONS)
    hidden, layers = model.lm_head.in_features, blocks(model)
    width = integer("width", width, 1, hidden)
    residual.require_no_output_norms(layers, f"ablation {ablation}")
    report(Progress(ablation, 0, len(layers)))
    parts: Parts = {}
    with torch.no_grad():
        hidden_states = embed(model, tokens)
        hidden_states.map_(lambda states, _: centre(states, layers[0].attention_norm))
        before = _projection(hidden_states, width)
    for index, block in enumerate(layers):
        with torch.no_grad():
            for branch in residual.residual_branches(block):
                last = index == len(layers) - 1 and branch[-1] is block.mlp
                norm = residual.norm_of(block, branch[0])
                cut_parts, before = _cut_branch_(hidden_states, branch, norm, before, ablation, width, last)
                parts |= cut_parts
        report(Progress(ablation, index + 1, len(layers)))
    return replace_modules(model, parts)


def _projection(states: HiddenStates, width: int) -> Projection:
    """Projection on the first `width` principal axes of the states."""
    axes = residual.principal_axes_of(states)[:, :width]
    return axes @ axes.T


def _cut_branch_(
    hidden_states: HiddenStates,
    branch: tuple[SlicedModule, ...],
    norm: nn.Module,
    before: Projection,
    ablation: Ablation,
    width: int,
    last: bool,
) -> tuple[Parts, Projection]:
    """Project modules that share a norm, and pass the hidden states through them, in place.

    `before` projects on the principal axes of the modules' input states. Also returns the projection on those of the
    states after the modules, without projections of their outputs.
    """
    dtype = hidden_states.hidden[0].dtype
    reads = "reads" in ablation
    reader = nn.Sequential(frozen_linear(before.to(dtype)), norm) if reads else norm
    outputs = [HiddenStates([], hidden_states.arguments) for _ in branch]
    for hidden, arguments in hidden_states.batches:
        normed = reader(hidden)
        for module, output in zip(branch, outputs, strict=True):
            output.hidden.append(centre(residual.output_of(module, normed, arguments), norm))
    entered, written = hidden_states.hidden, [output.hidden for output in outputs]
    hidden_states.hidden = [sum(added, start=states) for states, *added in zip(entered, *written, strict=True)]
    after = _projection(hidden_states, width)
    parts: Parts = {norm: reader} if reads else {}
    if ablation == "outputs":
        cuts = [_projection(output, width) for output in outputs]
    elif "writes" in ablation and not last:
        cuts = [after] * len(branch)
    else:
        return parts, after
    for module, cut in zip(branch, cuts, strict=True):
        writer = residual.writer_of(module)
        bias = None if writer.bias is None else (cut @ writer.bias.to(cut.dtype)).to(dtype)
        parts[writer] = frozen_linear((cut @ writer.weight.to(cut.dtype)).to(dtype), bias)
    for index, (states, *added) in enumerate(zip(entered, *written, strict=True)):
        hidden_states.hidden[index] = states + sum(
            output @ cut.to(dtype) for output, cut in zip(added, cuts, strict=True)
        )
    return parts, after


def measure_ablations(
    model: PreTrainedModel, width: int, calibration: Tokens, tokens: Windows, *, progress: ProgressOption = True
) -> dict[str, float]:
    """Perplexity on `tokens` with every ablation, to compare with the dense and the cross-module model's."""
    perplexities: dict[str, float] = {}
    report = progress_callback(progress)
    for ablation in ABLATIONS:
        ablated = ablated_model(model, ablation, width, calibration, progress=report)
        perplexities[ablation] = perplexity(ablated, tokens, ablation, progress=report)
    return perplexities
