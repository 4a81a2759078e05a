"""Bases of the residual stream for the cross-module method: principal axes of the inputs of each norm."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial, reduce

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from transformers import PreTrainedModel

from intraslice.calibration.stats import CalibrationStats
from intraslice.core.linalg import principal_axes
from intraslice.core.progress import Pause, Progress, ProgressCallback, progress_callback
from intraslice.distributed.sharing import require_enough, shard_of
from intraslice.modeling.crossmodule_layers import BasisNorm
from intraslice.modeling.families import Block, blocks
from intraslice.modeling.hidden_states import LayerArguments, embed
from intraslice.modeling.residual import SlicedModule, centre, output_of, principal_axes_of

Axes = Float[Tensor, "hidden hidden"]


class SlicedStates:
    """Sequential: bases of the hidden states after the sliced layers. The states are in the dense basis."""

    def __init__(self, model: PreTrainedModel, tokens: Int[Tensor, "sequences length"], norm: nn.Module) -> None:
        require_enough(len(tokens))
        self._states = embed(model, tokens[shard_of(len(tokens))])
        self._states.map_(lambda hidden, _: centre(hidden, norm))

    def first_axes(self, pause: Pause) -> Axes:
        """Axes of the first layer's input."""
        return principal_axes_of(self._states, pause)

    def next_axes(
        self, basis: Float[Tensor, "hidden width"], readers: list[SlicedModule], norm: nn.Module, pause: Pause
    ) -> Axes:
        """Project the states on the basis, as in the sliced model, and add the uncut outputs of the modules."""
        axes, basis_norm = basis.to(self._states.hidden[0].dtype), BasisNorm.of(norm)

        def step(states: Tensor, arguments: LayerArguments) -> Tensor:
            cut = states @ axes
            normed = basis_norm(cut)
            return cut @ axes.T + centre(
                reduce(torch.add, (output_of(module, normed, arguments) for module in readers)), norm
            )

        self._states.map_(step, pause)
        return principal_axes_of(self._states, pause)


class DenseMoments:
    """One-shot: bases of the dense model's hidden states at each norm. Moments are centred as by the norms."""

    def __init__(self, layers: Sequence[Block], stats: CalibrationStats) -> None:
        moments = []
        for block, layer in zip(layers, stats.layers, strict=True):
            moments += [layer.residual_moment] if block.parallel else [layer.residual_moment, layer.middle_moment]
        self._norm, self._moments, self._axes = layers[0].attention_norm, enumerate(moments), stats.residual_axes

    def first_axes(self, pause: Pause) -> Axes:
        """Axes of the first layer's input."""
        read, moment = next(self._moments)
        if read not in self._axes:
            moment = centre(moment.double(), self._norm)
            pause()
            self._axes[read] = principal_axes(centre(moment.T, self._norm))[1].float()
        return self._axes[read]

    def next_axes(
        self, basis: Float[Tensor, "hidden width"], readers: list[SlicedModule], norm: nn.Module, pause: Pause
    ) -> Axes:
        """Axes of the next modules' input."""
        return self.first_axes(pause)


@torch.no_grad()
def find_axes(model: PreTrainedModel, stats: CalibrationStats, *, progress: ProgressCallback | bool = True) -> None:
    """Compute the axes for one-shot slicing, which do not depend on the width, and cache them in `stats`."""
    report, layers = progress_callback(progress), blocks(model)
    source, reads = DenseMoments(layers, stats), sum(1 if block.parallel else 2 for block in layers)
    for read in range(reads):
        source.first_axes(partial(report, Progress("axes", read, reads)))
        report(Progress("axes", read + 1, reads))
