"""IntraSlice+: a one-shot slice whose output maps are fitted again, layer by layer, so that the residual stream of the
sliced model follows the dense one.

The paper fits each module to the dense module's answer *to the sliced model's input*, so errors add up over layers.
Here two streams run side by side, dense and sliced, and each output map answers for its own module and for the error
that has come so far: its target is the dense residual state less the sliced one. Sizes and all other weights stay.
"""

from __future__ import annotations

from collections.abc import Callable, Generator

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from transformers import PreTrainedModel

from intraslice.calibration.stats import CalibrationStats
from intraslice.linalg import add_moment_, damp, solve
from intraslice.modeling.families import Block, blocks
from intraslice.modeling.hidden_states import HiddenStates, embed
from intraslice.modeling.linear import frozen_linear
from intraslice.modeling.surgery import assemble
from intraslice.planning.ratios import SlicePlan
from intraslice.progress import Progress
from intraslice.slicing.driver import attention_from_moments, mlp_from_stats

DAMPING = 0.5  # of the change to an output map; 0.1 and 0.01 fit the calibration better and other text worse


def slice_aligned(
    model: PreTrainedModel, plan: SlicePlan, stats: CalibrationStats, tokens: Int[Tensor, "sequences length"]
) -> Generator[Progress, None, PreTrainedModel]:
    """Build the model of `plan` with output maps that follow the dense residual stream; yields progress by layer.

    Takes about one dense and one sliced pass over `tokens`. Raises NumericalError where a moment is singular.
    """
    modules = []
    for block, layer, moments in zip(blocks(model), plan.layers, stats.layers, strict=True):
        attention = attention_from_moments(block.attention, layer, moments, stats.tokens)
        mlp = mlp_from_stats(block.mlp, layer.neurons, moments, stats.tokens)
        modules.append((attention, mlp))
        yield Progress("slice", len(modules), len(plan.layers))
    sliced = assemble(model, modules)
    with torch.no_grad():
        dense_stream, own_stream = embed(model, tokens), embed(model, tokens)
    layers = list(zip(blocks(model), blocks(sliced), strict=True))
    for index, (dense, own) in enumerate(layers):
        _align_block_(dense, own, dense_stream, own_stream)
        yield Progress("align", index + 1, len(layers))
    return sliced


@torch.no_grad()
def _align_block_(dense: Block, own: Block, dense_stream: HiddenStates, own_stream: HiddenStates) -> None:
    """Fit both output maps of one sliced layer and move both streams through the layer, in place."""
    entered = [list(stream.hidden) for stream in (dense_stream, own_stream)]

    def attend(block: Block, hidden: Tensor, arguments: dict) -> Tensor:
        query, key, value = block.attention.project(block.attention_norm(hidden), arguments["position_embeddings"])
        return block.attention.attend(query, key, value, arguments["attention_mask"])

    def expand(block: Block, hidden: Tensor, _: dict) -> Tensor:
        return block.mlp.inner(block.mlp_norm(hidden))

    _align_module_(dense, own, "attention", "o_proj", attend, dense_stream, own_stream, *entered)
    if not dense.parallel:  # the MLP reads what attention has left, not what entered the layer
        entered = [list(stream.hidden) for stream in (dense_stream, own_stream)]
    _align_module_(dense, own, "mlp", "down_proj", expand, dense_stream, own_stream, *entered)


def _align_module_(
    dense: Block,
    own: Block,
    module: str,
    output: str,
    features: Callable[[Block, Tensor, dict], Tensor],
    dense_stream: HiddenStates,
    own_stream: HiddenStates,
    dense_read: list[Tensor],
    own_read: list[Tensor],
) -> None:
    target_map = getattr(getattr(dense, module), output)
    holder = getattr(own, module)
    first = getattr(holder, output)
    fit = None if holder is getattr(dense, module) else _Fit(first)
    rows = []
    for index, arguments in enumerate(own_stream.arguments):
        state = dense_stream.hidden[index] + target_map(features(dense, dense_read[index], arguments))
        rows.append(features(own, own_read[index], arguments))
        if fit is not None:
            fit.add_(rows[-1], state - own_stream.hidden[index], state)
        dense_stream.hidden[index] = state
    if fit is not None:
        setattr(holder, output, fit.solved())
    for index, own_rows in enumerate(rows):
        own_stream.hidden[index] = own_stream.hidden[index] + getattr(holder, output)(own_rows)


class _Fit:
    """Weighted least squares for the change of one output map, streamed over batches of tokens.

    A token weighs the inverse root mean square of its dense state, since the next norm divides by it. Unweighted, the
    few massive tokens would decide alone; with the inverse mean square they have no say, and a fit may give them up,
    and with them all attention that rests on them.
    """

    def __init__(self, first: nn.Linear) -> None:
        size, hidden = first.in_features, first.out_features
        device = first.weight.device
        self.first = first
        self.own = torch.zeros(size, size, device=device)
        self.cross = torch.zeros(size, hidden, device=device)
        self.own_sum = torch.zeros(size, device=device)
        self.error_sum = torch.zeros(hidden, device=device)
        self.weight = 0.0

    def add_(
        self,
        rows: Float[Tensor, "batch tokens size"],
        wanted: Float[Tensor, "batch tokens hidden"],
        state: Float[Tensor, "batch tokens hidden"],
    ) -> None:
        error = (wanted - self.first(rows)).float()
        weight = state.float().square().mean(-1, keepdim=True).clamp_min(torch.finfo(torch.float32).tiny).rsqrt()
        weighted = rows.float() * weight
        add_moment_(self.own, weighted, rows)
        add_moment_(self.cross, weighted, error)
        self.own_sum += weighted.flatten(0, 1).sum(0)
        self.error_sum += (error * weight).flatten(0, 1).sum(0)
        self.weight += weight.sum().item()

    def solved(self) -> nn.Linear:
        """The map with its change added; where it has a bias, the change is fitted around the weighted means."""
        own, cross, bias = self.own, self.cross, self.first.bias
        own_mean, error_mean = self.own_sum / self.weight, self.error_sum / self.weight
        if bias is not None:
            own = own - self.weight * torch.outer(own_mean, own_mean)
            cross = cross - self.weight * torch.outer(own_mean, error_mean)
        change = solve(damp(own, DAMPING), cross).T
        kind = self.first.weight.dtype
        if bias is not None:
            bias = (bias.float() + error_mean - change @ own_mean).to(kind)
        return frozen_linear((self.first.weight.float() + change).to(kind), bias)
