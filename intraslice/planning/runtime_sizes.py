"""Sizes that other runtimes take as they are, so that nothing is filled up with zeros. Pure.

llama.cpp knows heads of one width alone, and wants as many queries in every group of a layer; quantised rows are whole
blocks. So heads keep their width, groups stay even, and MLPs lose neurons by the block. The budget is met as with
single units: step by step over all layers, the one first that costs least a parameter.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional

from intraslice.core.config import ModuleKind, SliceConfig
from intraslice.core.registry import ESTIMATORS
from intraslice.planning.even_heads import EvenHeads, frontier
from intraslice.planning.profile import Profile
from intraslice.planning.widths import block_widths

# As the share that masks stand for among single units (profile.py): of 0.5, 0.6, 0.7 and 0.85 the best on three texts.
WHOLE_HEAD_SHARE = 0.6
SLACK = 1e-9  # of a ratio: a third of the heads is no more than a cap of a third


@dataclass(frozen=True)
class RuntimeSizes:
    """What every layer keeps, and the importance a parameter of what went last of each kind (0 where nothing did)."""

    heads: list[EvenHeads]
    neurons: list[int]
    attention_importance: float
    mlp_importance: float
    capped_attention: tuple[int, ...]  # layers that have come as far as the cap lets them
    capped_mlp: tuple[int, ...]
    nominal_sparsity: float  # the one asked for, but 0 where only locked modules go, and 1 where all goes that may


@dataclass(frozen=True)
class _Steps:
    """What may go next in any layer, the step first that costs least a parameter."""

    cost: Float[Tensor, " steps"]
    parameters: Float[Tensor, " steps"]
    layer: Int[Tensor, " steps"]

    @property
    def gone(self) -> Float[Tensor, " steps_and_one"]:
        """Parameters gone after 0, 1, 2 ... steps."""
        return functional.pad(self.parameters.cumsum(0), (1, 0))

    def places(self, count: int, layers: int) -> list[int]:
        """How far each layer is after so many steps."""
        return torch.bincount(self.layer[:count], minlength=layers).tolist()

    def dearest(self, count: int) -> float:
        """What the last of so many steps cost."""
        return self.cost[count - 1].item() if count else 0.0


def runtime_sizes(profile: Profile, config: SliceConfig) -> RuntimeSizes:
    """Sizes that remove `config.sparsity` of the decoder layers' parameters, to half a block of one layer's neurons.

    That is where MLPs have blocks left to make up for what heads, whose steps are large, remove too much or too little.
    With a bias MLPs take that share, else the costs decide. A locked module takes the size next to its ratio.
    """
    estimator = config.estimator if ESTIMATORS[config.estimator].importance else None
    frontiers = [frontier(choices) for choices in _allowed_heads(profile, config, estimator)]
    widths = _allowed_widths(profile, config)
    attention, mlp = _head_steps(frontiers), _block_steps(profile, widths, estimator)
    sizes = [layer.sizes for layer in profile.layers]
    locked_heads = sum(own[0].removed for own in frontiers)
    locked_neurons = sum((size.neurons - own[0]) * size.neuron_cost for size, own in zip(sizes, widths, strict=True))
    budget = config.sparsity * profile.dense_decoder - locked_heads - locked_neurons

    if config.bias is None and estimator:  # the blocks that cost no more than the step go with it
        beside = mlp.gone[torch.searchsorted(mlp.cost, attention.cost, right=True)]
    else:
        share = (config.bias or 1.0) * config.sparsity * sum(size.neurons * size.neuron_cost for size in sizes)
        beside = mlp.gone[-1].clamp_max(share - locked_neurons).clamp_min(0)
    # Steps of one cost go together, so that uniform layers stay alike, and they go where more than half of them fits.
    first, last = (torch.searchsorted(attention.cost, attention.cost, right=after) for after in (False, True))
    head_steps = int((beside + (attention.gone[first] + attention.gone[last]) / 2 < budget).sum())
    block_steps = int((mlp.gone + attention.gone[head_steps] - budget).abs().argmin())
    heads = [own[place] for own, place in zip(frontiers, attention.places(head_steps, len(sizes)), strict=True)]
    neurons = [own[place] for own, place in zip(widths, mlp.places(block_steps, len(sizes)), strict=True)]
    steps, most = head_steps + block_steps, len(attention.cost) + len(mlp.cost)
    return RuntimeSizes(
        heads,
        neurons,
        attention.dearest(head_steps) * WHOLE_HEAD_SHARE,
        mlp.dearest(block_steps),
        tuple(i for i, own in enumerate(frontiers) if len(own) > 1 and own[-1] is heads[i] and heads[i].heads),
        tuple(i for i, own in enumerate(widths) if len(own) > 1 and own[-1] == neurons[i] and neurons[i]),
        0.0 if steps == 0 and budget < 0 else 1.0 if steps == most else config.sparsity,
    )


def _locked(config: SliceConfig, module: ModuleKind) -> dict[int, float]:
    return {layer: ratio for layer, kind, ratio in config.locked if kind == module}


def _allowed_heads(profile: Profile, config: SliceConfig, estimator: str | None) -> list[list[EvenHeads]]:
    """What every layer may keep under the cap, the largest first; a locked layer the one that is next to its ratio."""
    allowed, locked = [], _locked(config, "attention")
    for index, (choices, _) in enumerate(profile.choices(estimator)):
        heads = len(choices[0].heads)
        if index in locked:
            wanted = heads * (1 - locked[index])
            allowed.append([min(choices, key=lambda choice: (abs(len(choice.heads) - wanted), choice.loss))])
        else:
            least = heads * (1 - config.cap - SLACK)
            allowed.append([choice for choice in choices if len(choice.heads) >= least])
    return allowed


def _allowed_widths(profile: Profile, config: SliceConfig) -> list[list[int]]:
    """As `_allowed_heads`, of MLPs."""
    allowed, locked = [], _locked(config, "mlp")
    for index, neurons in enumerate(layer.sizes.neurons for layer in profile.layers):
        widths = block_widths(neurons)
        if index in locked:
            wanted = neurons * (1 - locked[index])
            allowed.append([min(widths, key=lambda width: abs(width - wanted))])
        else:
            allowed.append([width for width in widths if width >= neurons * (1 - config.cap - SLACK)])
    return allowed


def _head_steps(frontiers: list[list[EvenHeads]]) -> _Steps:
    removed = [torch.tensor([choice.removed for choice in own], dtype=torch.double).diff() for own in frontiers]
    lost = [torch.tensor([choice.loss for choice in own], dtype=torch.double).diff() for own in frontiers]
    return _in_order([loss / gone / WHOLE_HEAD_SHARE for loss, gone in zip(lost, removed, strict=True)], removed)


def _block_steps(profile: Profile, widths: list[list[int]], estimator: str | None) -> _Steps:
    costs = [own.block_costs[: len(kept) - 1] for own, kept in zip(profile.choices(estimator), widths, strict=True)]
    removed = [
        -torch.tensor(kept, dtype=torch.double).diff() * layer.sizes.neuron_cost
        for layer, kept in zip(profile.layers, widths, strict=True)
    ]
    return _in_order(costs, removed)


def _in_order(costs: list[Tensor], parameters: list[Tensor]) -> _Steps:
    layer = torch.arange(len(costs)).repeat_interleave(torch.tensor([len(own) for own in costs]))
    cost, order = torch.cat(costs).sort(stable=True)
    return _Steps(cost, torch.cat(parameters)[order], layer[order])
