"""Is it the residual's fault? The damage of cross-module slicing, one part at a time, on a residual stream kept whole.

Each `Fault` cuts the dense model at one kind of place only and removes no parameter: this is a diagnosis, not a method.
"""

from __future__ import annotations

from collections.abc import Generator
from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from transformers import PreTrainedModel

from intraslice.blocks import frozen_linear
from intraslice.config import Progress, UserError
from intraslice.evaluation import perplexity
from intraslice.families import blocks
from intraslice.linalg import add_moment_, principal_axes
from intraslice.rotation import Module, centre, groups, norm_of, output_of, principal_axes_of, with_parts, writer_name
from intraslice.stream import Stream, embed

Fault = Literal["outputs", "reads", "reads and writes", "writes"]
FAULTS: dict[Fault, str] = {
    "outputs": "what modules write, on the principal axes of the module's own output",
    "reads": "what modules read, on the state's principal axes",
    "reads and writes": "what modules read and write, on the state's principal axes",
    "writes": "what modules write, on the principal axes of the state that they write to",
}


@dataclass(frozen=True)
class ModuleAxes:
    """Principal axes, as columns, around one dense module."""

    before: Float[Tensor, "hidden hidden"]  # of the state that it reads
    after: Float[Tensor, "hidden hidden"] | None  # of the state it adds to; None for the last, which nobody cuts
    own: Float[Tensor, "hidden hidden"]  # of its output


def find_axes(
    model: PreTrainedModel, tokens: Int[Tensor, "sequences length"]
) -> Generator[Progress, None, list[tuple[ModuleAxes, ModuleAxes]]]:
    """Axes of attention and MLP of every layer of a dense canonicalised model; yields progress by layer.

    They come from the dense stream, in one pass, and serve every width and fault.
    """
    layers, kind = blocks(model), model.dtype
    yield Progress("axes", 0, len(layers))
    with torch.no_grad():
        stream = embed(model, tokens)
        stream.map_(lambda states, _: centre(states, layers[0].attention_norm))
        before = principal_axes_of(stream)
    found = []
    for index, block in enumerate(layers):
        made = []
        with torch.no_grad():
            for group in groups(block):
                own = _move_(stream, group, norm_of(block, group[0]))
                after = principal_axes_of(stream)
                last = index == len(layers) - 1 and group[-1] is block.mlp
                made += [ModuleAxes(before.to(kind), None if last else after.to(kind), axes.to(kind)) for axes in own]
                before = after
        found.append(tuple(made))
        yield Progress("axes", len(found), len(layers))
    return found


def _move_(stream: Stream, group: tuple[Module, ...], norm: nn.Module) -> list[Float[Tensor, "hidden hidden"]]:
    """Send the stream through modules that share a norm, in place; the axes of what each of them adds."""
    hidden = stream.hidden[0]
    width = hidden.shape[-1]
    moments = [torch.zeros(width, width, dtype=torch.float64, device=hidden.device) for _ in group]

    def step(states: Tensor, arguments: dict) -> Tensor:
        normed = norm(states)
        outputs = [centre(output_of(module, normed, arguments), norm) for module in group]
        for moment, output in zip(moments, outputs, strict=True):
            add_moment_(moment, output)
        return states + sum(outputs)

    stream.map_(step)
    return [principal_axes(moment)[1] for moment in moments]


def projected_model(
    model: PreTrainedModel, axes: list[tuple[ModuleAxes, ModuleAxes]], fault: Fault, width: int
) -> PreTrainedModel:
    """The dense model with one part cut to `width` axes and its residual stream whole; all else is shared with it.

    Raises UserError for an unknown fault or a width that the stream does not have.
    """
    hidden = len(axes[0][0].before)
    if fault not in FAULTS:
        raise UserError(f"fault is {fault!r}; wanted one of {', '.join(FAULTS)}")
    if not 1 <= width <= hidden:
        raise UserError(f"width is {width}; wanted 1 to {hidden}, the hidden size")

    def projection(basis: Tensor) -> Tensor:
        return basis[:, :width] @ basis[:, :width].T

    parts: dict[nn.Module, nn.Module] = {}
    with torch.no_grad():
        for block, pair in zip(blocks(model), axes, strict=True):
            for module, around in zip((block.attention, block.mlp), pair, strict=True):
                norm, writer = norm_of(block, module), getattr(module, writer_name(module))
                if fault in ("reads", "reads and writes"):
                    parts[norm] = nn.Sequential(frozen_linear(projection(around.before)), norm)
                written_on = {"outputs": around.own, "reads": None}.get(fault, around.after)
                if written_on is not None:
                    cut = projection(written_on)
                    bias = None if writer.bias is None else cut @ writer.bias
                    parts[writer] = frozen_linear(cut @ writer.weight, bias)
        return with_parts(model, parts)


def measure_faults(
    model: PreTrainedModel,
    axes: list[tuple[ModuleAxes, ModuleAxes]],
    width: int,
    tokens: Int[Tensor, "windows window"],
) -> Generator[Progress, None, dict[str, float]]:
    """Perplexity under every fault at one width, to be held against the dense and the cross-module model's."""
    measured = {}
    for fault in FAULTS:
        measured[fault] = yield from perplexity(projected_model(model, axes, fault, width), tokens, fault)
    return measured
