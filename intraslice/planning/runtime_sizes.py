"""Sizes that other runtimes support without zero padding. Pure.

llama.cpp needs heads of one width, the same number of queries in every group of a layer, and quantised rows of whole
blocks. So heads keep their width, groups stay even, and neurons are removed in blocks. To meet the budget, the step
with the lowest cost per parameter over all layers is taken first, as with single units.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TypeVar

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional

from intraslice.core.config import MODULE_KINDS, ModuleKind, SliceConfig
from intraslice.core.registry import ESTIMATORS
from intraslice.planning.kept_heads import EvenHeads, frontier
from intraslice.planning.profile import Profile
from intraslice.planning.sizes import LayerPlan, LayerSizes, Reasons, block_widths

# As MASKED_FRACTION in profile.py, for whole heads. The best of 0.5, 0.6, 0.7 and 0.85 on three texts.
WHOLE_HEAD_FRACTION = 0.6
Choice = TypeVar("Choice")
SLACK = 1e-9  # of a ratio, for rounding: a third of the heads does not exceed a cap of a third


@dataclass(frozen=True)
class _Steps:
    """Steps of all layers, the lowest cost per parameter first."""

    cost: Float[Tensor, " steps"]
    parameters: Float[Tensor, " steps"]
    layer: Int[Tensor, " steps"]

    @cached_property
    def removed(self) -> Float[Tensor, " steps_and_one"]:
        """Parameters removed after 0, 1, 2 ... steps."""
        return functional.pad(self.parameters.cumsum(0), (1, 0))

    def choose(self, count: int, choices: Sequence[Sequence[Choice]]) -> list[Choice]:
        """Every layer's choice after the first `count` steps."""
        taken = torch.bincount(self.layer[:count], minlength=len(choices)).tolist()
        return [of_layer[steps] for of_layer, steps in zip(choices, taken, strict=True)]

    def last_cost(self, count: int) -> float:
        """The cost of step `count`, 0 for no step."""
        return self.cost[count - 1].item() if count else 0.0


def runtime_layers(profile: Profile, config: SliceConfig) -> tuple[list[LayerPlan], Reasons]:
    """Sizes that remove `config.sparsity` of the decoder layers' parameters, to half a block of one layer's neurons.

    That precision needs enough blocks of neurons to compensate for the large steps of heads. With a bias MLPs are
    pruned by that fraction, else the costs decide. A locked module has the size nearest to its ratio; the other ratios
    and the bias follow from the sizes.
    """
    estimator = config.estimator if ESTIMATORS[config.estimator].importance else None
    sizes, cap = [layer.sizes for layer in profile.layers], config.cap
    attention_locks, mlp_locks = (locked_ratios(config, module, sizes) for module in MODULE_KINDS)
    frontiers = [
        frontier(_allowed(sets, lambda kept: (len(kept.heads), kept.loss), size.heads, attention_locks.get(at), cap))
        for at, (size, (sets, _)) in enumerate(zip(sizes, profile.choices(estimator), strict=True))
    ]
    widths = [
        _allowed(block_widths(size.neurons), lambda width: (width, 0.0), size.neurons, mlp_locks.get(at), cap)
        for at, size in enumerate(sizes)
    ]
    attention, mlp = _head_steps(frontiers), _block_steps(profile, widths, estimator)
    locked_heads = sum(choices[0].removed for choices in frontiers)
    locked_neurons = sum((size.neurons - kept[0]) * size.neuron_cost for size, kept in zip(sizes, widths, strict=True))
    budget = config.sparsity * profile.dense_decoder - locked_heads - locked_neurons
    mlp_budget = None
    if config.bias is not None or not estimator:
        mlp_budget = (config.bias or 1.0) * config.sparsity * sum(size.neurons * size.neuron_cost for size in sizes)
        mlp_budget -= locked_neurons
    head_steps, block_steps = _counts(attention, mlp, budget, mlp_budget)
    heads, neurons = attention.choose(head_steps, frontiers), mlp.choose(block_steps, widths)
    layers = []
    for at, (size, kept, width) in enumerate(zip(sizes, heads, neurons, strict=True)):
        attention_ratio = attention_locks.get(at, 1 - len(kept.heads) / size.heads)
        mlp_ratio = mlp_locks.get(at, 1 - width / size.neurons)
        layers.append(LayerPlan(attention_ratio, mlp_ratio, kept.heads, kept.kv_heads, size.dim, width))
    removed_neurons = 1 - sum(neurons) / sum(size.neurons for size in sizes)
    attention_threshold = mlp_threshold = None
    if estimator:  # importances of the last removed steps
        unit = sizes[0].channels / len(profile.importances(estimator, "attention")[0])
        attention_threshold = attention.last_cost(head_steps) * WHOLE_HEAD_FRACTION * unit * sizes[0].channel_cost
        mlp_threshold = mlp.last_cost(block_steps) * sizes[0].neuron_cost
    steps, all_steps = head_steps + block_steps, len(attention.cost) + len(mlp.cost)
    return layers, Reasons(
        0.0 if steps == 0 and budget < 0 else 1.0 if steps == all_steps else config.sparsity,
        removed_neurons / config.sparsity if config.sparsity else config.bias or 1.0,
        attention_threshold,
        mlp_threshold,
        # Layers whose last step that the cap allows was taken.
        tuple(i for i, (*others, least) in enumerate(frontiers) if others and least is heads[i] and least.heads),
        tuple(i for i, (*others, least) in enumerate(widths) if others and least == neurons[i] and least),
    )


def _counts(attention: _Steps, mlp: _Steps, budget: float, mlp_budget: float | None) -> tuple[int, int]:
    """The numbers of steps that remove `budget` parameters together, and MLPs alone `mlp_budget`, if it is given."""
    if mlp_budget is None:  # with each head step, all blocks of at most its cost are removed
        mlp_removed = mlp.removed[torch.searchsorted(mlp.cost, attention.cost, right=True)]
    else:
        mlp_removed = mlp.removed[-1].clamp_max(mlp_budget).clamp_min(0)
    # Steps of equal cost are taken together, so that uniform layers stay equal, if more than half of them fits.
    first, last = (torch.searchsorted(attention.cost, attention.cost, right=after) for after in (False, True))
    head_steps = int((mlp_removed + (attention.removed[first] + attention.removed[last]) / 2 < budget).sum())
    return head_steps, int((mlp.removed + attention.removed[head_steps] - budget).abs().argmin())


def locked_ratios(config: SliceConfig, module: ModuleKind, sizes: Sequence[LayerSizes]) -> dict[int, float]:
    """The locked ratios of one kind of module, by layer; of a locked number of neurons, the ratio that it leaves."""
    ratios = {layer: ratio for layer, kind, ratio in config.ratio_locks if kind == module}
    neurons = {layer: 1 - count / sizes[layer].neurons for layer, *_, count in config.neuron_locks}
    return ratios | (neurons if module == "mlp" else {})


def _allowed(
    choices: Sequence[Choice], key: Callable[[Choice], tuple[int, float]], dense: int, locked: float | None, cap: float
) -> list[Choice]:
    """The choices under the cap, the largest first; for a locked module the one nearest to its ratio.

    `key` gives the size of a choice, and its loss, which decides between two that are equally near. Where locked heads
    leave none under the cap, the largest is allowed.
    """
    if locked is None:
        return [choice for choice in choices if key(choice)[0] >= dense * (1 - cap - SLACK)] or [choices[0]]
    return [min(choices, key=lambda choice: (abs(key(choice)[0] - dense * (1 - locked)), key(choice)[1]))]


def _head_steps(frontiers: list[list[EvenHeads]]) -> _Steps:
    removed = [torch.tensor([choice.removed for choice in choices], dtype=torch.double).diff() for choices in frontiers]
    losses = [torch.tensor([choice.loss for choice in choices], dtype=torch.double).diff() for choices in frontiers]
    costs = [loss / count / WHOLE_HEAD_FRACTION for loss, count in zip(losses, removed, strict=True)]
    return _in_order(costs, removed)


def _block_steps(profile: Profile, widths: list[list[int]], estimator: str | None) -> _Steps:
    costs = [costs[: len(kept) - 1] for (_, costs), kept in zip(profile.choices(estimator), widths, strict=True)]
    removed = [
        -torch.tensor(kept, dtype=torch.double).diff() * layer.sizes.neuron_cost
        for layer, kept in zip(profile.layers, widths, strict=True)
    ]
    return _in_order(costs, removed)


def _in_order(costs: list[Tensor], parameters: list[Tensor]) -> _Steps:
    layer = torch.arange(len(costs)).repeat_interleave(torch.tensor([len(layer_costs) for layer_costs in costs]))
    cost, order = torch.cat(costs).sort(stable=True)
    return _Steps(cost, torch.cat(parameters)[order], layer[order])
