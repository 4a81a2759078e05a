"""Is it the residual's fault? The damage of cross-module slicing, one part at a time, on a residual stream kept whole.

Each `Ablation` cuts the dense model at one kind of place only and removes no parameter: a diagnosis, not a method. As
in cross-module slicing each layer's axes come from the stream as the cuts before it leave it. Axes of the dense stream
are another question: on SmolLM2 at 432 of 576 they make "writes" 5.5 and "reads and writes" 13 times the dense
perplexity, where these make 9 and 7.
"""

from __future__ import annotations

from collections.abc import Generator
from typing import Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from transformers import PreTrainedModel

from intraslice.errors import UserError
from intraslice.evaluation.loss import perplexity
from intraslice.linalg import add_moment_, principal_axes
from intraslice.modeling.families import blocks
from intraslice.modeling.hidden_states import HiddenStates, embed
from intraslice.modeling.linear import frozen_linear
from intraslice.modeling.residual import (
    SlicedModule,
    centre,
    groups,
    norm_of,
    output_of,
    principal_axes_of,
    writer_name,
)
from intraslice.modeling.surgery import with_parts
from intraslice.progress import Progress

Ablation = Literal["outputs", "reads", "reads and writes", "writes"]
ABLATIONS: dict[Ablation, str] = {
    "outputs": "what modules write, on the principal axes of the module's own output",
    "reads": "what modules read, on the state's principal axes",
    "reads and writes": "what modules read and write, on the state's principal axes",
    "writes": "what modules write, on the principal axes of the state once it is written",
}
Parts = dict[nn.Module, nn.Module]
Projection = Float[Tensor, "hidden hidden"]


def ablated_model(
    model: PreTrainedModel, fault: Ablation, width: int, tokens: Int[Tensor, "sequences length"]
) -> Generator[Progress, None, PreTrainedModel]:
    """A dense canonicalised model with one kind of place cut to `width` axes, and its residual stream whole.

    The last module's write goes to the head, in no basis of the stream, and is cut on its own axes only. All that is
    not cut is shared with the dense model. Costs a forward over `tokens`; yields progress by layer. Raises UserError
    for an unknown fault or a width that the stream does not have.
    """
    if fault not in ABLATIONS:
        raise UserError(f"fault is {fault!r}; wanted one of {', '.join(ABLATIONS)}")
    hidden, layers = model.lm_head.in_features, blocks(model)
    if not 1 <= width <= hidden:
        raise UserError(f"width is {width}; wanted 1 to {hidden}, the hidden size")
    yield Progress(fault, 0, len(layers))
    parts: Parts = {}
    with torch.no_grad():
        stream = embed(model, tokens)
        stream.map_(lambda states, _: centre(states, layers[0].attention_norm))
        state = _projection(principal_axes_of(stream), width)
    for index, block in enumerate(layers):
        with torch.no_grad():
            for group in groups(block):
                last = index == len(layers) - 1 and group[-1] is block.mlp
                made, state = _cut_group_(stream, group, norm_of(block, group[0]), state, fault, width, last)
                parts |= made
        yield Progress(fault, index + 1, len(layers))
    return with_parts(model, parts)


def _projection(axes: Float[Tensor, "hidden hidden"], width: int) -> Projection:
    return axes[:, :width] @ axes[:, :width].T


def _cut_group_(
    stream: HiddenStates,
    group: tuple[SlicedModule, ...],
    norm: nn.Module,
    state: Projection,
    fault: Ablation,
    width: int,
    last: bool,
) -> tuple[Parts, Projection]:
    """Cut modules that share a norm and send the stream through them, in place; also the next state's projection."""
    kind = stream.hidden[0].dtype
    reads = "reads" in fault
    reader = nn.Sequential(frozen_linear(state.to(kind)), norm) if reads else norm
    outputs: list[list[Tensor]] = [[] for _ in group]
    for hidden, arguments in zip(stream.hidden, stream.arguments, strict=True):
        normed = reader(hidden)
        for module, own in zip(group, outputs, strict=True):
            own.append(centre(output_of(module, normed, arguments), norm))
    entered = stream.hidden
    stream.hidden = [sum(added, start=states) for states, *added in zip(entered, *outputs, strict=True)]
    after = _projection(principal_axes_of(stream), width)
    parts: Parts = {norm: reader} if reads else {}
    if fault == "outputs":
        cuts = [_projection(_axes(own), width) for own in outputs]
    elif "writes" in fault and not last:
        cuts = [after] * len(group)
    else:
        return parts, after
    for module, cut in zip(group, cuts, strict=True):
        writer = getattr(module, writer_name(module))
        bias = None if writer.bias is None else (cut @ writer.bias.to(cut.dtype)).to(kind)
        parts[writer] = frozen_linear((cut @ writer.weight.to(cut.dtype)).to(kind), bias)
    for index, states in enumerate(entered):
        stream.hidden[index] = states + sum(own[index] @ cut.to(kind) for own, cut in zip(outputs, cuts, strict=True))
    return parts, after


def _axes(outputs: list[Float[Tensor, "batch tokens hidden"]]) -> Float[Tensor, "hidden hidden"]:
    width = outputs[0].shape[-1]
    moment = torch.zeros(width, width, dtype=torch.float64, device=outputs[0].device)
    for rows in outputs:
        add_moment_(moment, rows)
    return principal_axes(moment)[1]


def measure_ablations(
    model: PreTrainedModel,
    width: int,
    calibration: Int[Tensor, "sequences length"],
    tokens: Int[Tensor, "windows window"],
) -> Generator[Progress, None, dict[str, float]]:
    """Perplexity on `tokens` under every fault, to be held against the dense and the cross-module model's."""
    measured = {}
    for fault in ABLATIONS:
        cut = yield from ablated_model(model, fault, width, calibration)
        measured[fault] = yield from perplexity(cut, tokens, fault)
    return measured
