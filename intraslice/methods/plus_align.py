"""IntraSlice+: a one-shot slice whose output maps are fitted again, layer by layer, so that the residual stream of the
sliced model follows the dense one.

The paper fits each module to the dense module's answer *to the sliced model's input*, so errors add up over layers.
Here the hidden states of both models move side by side, and each output map answers for its own module and for the
error that has come so far: its target is the dense hidden state after the module less the sliced one before it. Sizes
and all other weights stay.
"""

from __future__ import annotations

from collections.abc import Generator
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from transformers import PreTrainedModel

from intraslice.calibration.stats import CalibrationStats
from intraslice.config import ModuleKind
from intraslice.linalg import add_moment_, damp, solve
from intraslice.modeling.families import Block, blocks
from intraslice.modeling.hidden_states import HiddenStates, embed
from intraslice.modeling.linear import frozen_linear
from intraslice.modeling.residual import writer_name
from intraslice.modeling.surgery import with_parts
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
    parts: dict[nn.Module, nn.Module] = {}
    for index, (block, layer) in enumerate(zip(blocks(model), plan.layers, strict=True)):
        parts[block.attention] = attention_from_moments(block.attention, layer, stats.layers[index], stats.tokens)
        parts[block.mlp] = mlp_from_stats(block.mlp, layer.neurons, stats, index)
        yield Progress("slice", index + 1, len(plan.layers))
    sliced = with_parts(model, parts)
    with torch.no_grad():
        dense_states, sliced_states = embed(model, tokens), embed(model, tokens)
    layers = list(zip(blocks(model), blocks(sliced), strict=True))
    for index, (dense_block, sliced_block) in enumerate(layers):
        _align_layer_(dense_block, sliced_block, dense_states, sliced_states)
        yield Progress("align", index + 1, len(layers))
    return sliced


@torch.no_grad()
def _align_layer_(dense: Block, sliced: Block, dense_states: HiddenStates, sliced_states: HiddenStates) -> None:
    """Fit both output maps of one sliced layer and move both models' hidden states through the layer, in place."""
    for module in ("attention", "mlp"):
        if module == "attention" or not dense.parallel:  # a parallel MLP reads what entered the layer, as attention did
            dense_side = _Side(dense, dense_states, list(dense_states.hidden))
            sliced_side = _Side(sliced, sliced_states, list(sliced_states.hidden))
        _align_module_(dense_side, sliced_side, module)


@dataclass(frozen=True)
class _Side:
    """One of the two models, dense or sliced, at one layer."""

    block: Block
    states: HiddenStates  # move on in place, module by module
    read: list[Float[Tensor, "batch tokens hidden"]]  # the states that the module at hand reads

    def features(self, module: ModuleKind, batch: int) -> Float[Tensor, "batch tokens size"]:
        """What enters the module's output map."""
        block, hidden, arguments = self.block, self.read[batch], self.states.arguments[batch]
        if module == "mlp":
            return block.mlp.inner(block.mlp_norm(hidden))
        query, key, value = block.attention.project(block.attention_norm(hidden), arguments["position_embeddings"])
        return block.attention.attend(query, key, value, arguments["attention_mask"])


def _align_module_(dense: _Side, sliced: _Side, module: ModuleKind) -> None:
    dense_module, sliced_module = getattr(dense.block, module), getattr(sliced.block, module)
    output = writer_name(dense_module)
    dense_map, sliced_map = getattr(dense_module, output), getattr(sliced_module, output)
    fit = None if sliced_module is dense_module else _Fit(sliced_map)
    features = []
    for batch in range(len(dense.read)):
        state = dense.states.hidden[batch] + dense_map(dense.features(module, batch))
        features.append(sliced.features(module, batch))
        if fit is not None:
            fit.add_(features[-1], state - sliced.states.hidden[batch], state)
        dense.states.hidden[batch] = state
    if fit is not None:
        sliced_map = fit.solved()
        setattr(sliced_module, output, sliced_map)
    for batch, rows in enumerate(features):
        sliced.states.hidden[batch] = sliced.states.hidden[batch] + sliced_map(rows)


class _Fit:
    """Weighted least squares for the change of one output map, streamed over batches of tokens.

    A token weighs the inverse root mean square of its dense state, since the next norm divides by it. Unweighted, the
    few massive tokens would decide alone; with the inverse mean square they have no say, and a fit may give them up,
    and with them all attention that rests on them.
    """

    def __init__(self, output_map: nn.Linear) -> None:
        size, hidden = output_map.in_features, output_map.out_features
        device = output_map.weight.device
        self.output_map = output_map
        self.moment = torch.zeros(size, size, device=device)  # of the features
        self.cross_moment = torch.zeros(size, hidden, device=device)  # of the features with the error
        self.feature_sum = torch.zeros(size, device=device)
        self.error_sum = torch.zeros(hidden, device=device)
        self.weight = 0.0

    def add_(
        self,
        features: Float[Tensor, "batch tokens size"],
        target: Float[Tensor, "batch tokens hidden"],
        state: Float[Tensor, "batch tokens hidden"],
    ) -> None:
        """Take in a batch: what enters the map, what should leave it, and the dense state that gives the weights."""
        error = (target - self.output_map(features)).float()
        weight = state.float().square().mean(-1, keepdim=True).clamp_min(torch.finfo(torch.float32).tiny).rsqrt()
        weighted = features.float() * weight
        add_moment_(self.moment, weighted, features)
        add_moment_(self.cross_moment, weighted, error)
        self.feature_sum += weighted.flatten(0, 1).sum(0)
        self.error_sum += (error * weight).flatten(0, 1).sum(0)
        self.weight += weight.sum().item()

    def solved(self) -> nn.Linear:
        """The map with its change added; where it has a bias, the change is fitted around the weighted means."""
        moment, cross_moment, bias = self.moment, self.cross_moment, self.output_map.bias
        feature_mean, error_mean = self.feature_sum / self.weight, self.error_sum / self.weight
        if bias is not None:
            moment = moment - self.weight * torch.outer(feature_mean, feature_mean)
            cross_moment = cross_moment - self.weight * torch.outer(feature_mean, error_mean)
        change = solve(damp(moment, DAMPING), cross_moment).T
        dtype = self.output_map.weight.dtype
        if bias is not None:
            bias = (bias.float() + error_mean - change @ feature_mean).to(dtype)
        return frozen_linear((self.output_map.weight.float() + change).to(dtype), bias)
