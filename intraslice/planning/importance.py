"""What the ratio estimator reads of a calibration (paper §4): importances, sizes, all units in one ranking. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional

from intraslice.config import GRADIENT_GROUP, Estimator
from intraslice.errors import UserError
from intraslice.linalg import diagonal_blocks, principal_axes
from intraslice.planning.head_table import HeadTable
from intraslice.planning.sizes import LayerSizes

# Of a head's parameters, those that masks on what enters o_proj stand for: values and output weights, which are half of
# them, and some of what queries and keys are worth. Of 0.5, 0.6, 0.7, 0.8 and 1 the best on three texts.
MASKED_SHARE = 0.7


def group_gradients(
    gradients: Float[Tensor, "sequences channels"], group: int = GRADIENT_GROUP
) -> Float[Tensor, "groups channels"]:
    """Sum the mask gradients of every `group` sequences."""
    return torch.stack([part.sum(0) for part in gradients.split(group)])


def unit_channels(dim: int, fraction: float) -> int:
    """Channels of a unit that is a fraction of a head. Raises UserError when such units do not fill the head."""
    unit = round(fraction * dim)
    if unit < 1 or dim % unit:
        fitting = ", ".join(f"{size / dim:.4g}" for size in range(1, dim + 1) if dim % size == 0)
        raise UserError(f"head_fraction is {fraction!r}; for heads of {dim} channels wanted one of {fitting}")
    return unit


def pca_importance(
    gradients: Float[Tensor, "groups channels"],
    moment: Float[Tensor, "channels channels"],
    heads: int,
    unit: int = 1,
) -> Float[Tensor, " units"]:
    """Importance of each `unit` consecutive principal channels of each head: `sum_B ((g Q)_k)^2` (the paper's I_i).

    Squared channel by channel, so the arbitrary signs of eigenvectors do not matter. The larger the unit, the less is
    left of the rotation: summed over a whole head it cancels.
    """
    _, axes = principal_axes(diagonal_blocks(moment, heads))
    rotated = torch.einsum("bhd,hdk->bhk", gradients.unflatten(-1, (heads, -1)), axes)
    return rotated.square().sum(0).view(-1, unit).sum(-1)


def fisher_head_importance(
    gradients: Float[Tensor, "groups channels"], heads: int, unit: int | None = None
) -> Float[Tensor, " units"]:
    """Importance of each `unit` consecutive channels of each head, by default of the whole head.

    The squared gradient of one mask over the unit, summed over the calibration.
    """
    return gradients.unflatten(-1, (-1, unit or gradients.shape[-1] // heads)).sum(-1).square().sum(0)


def neuron_importance(gradients: Float[Tensor, "groups neurons"]) -> Float[Tensor, " neurons"]:
    """Importance of each MLP neuron: its squared mask gradient, summed over the calibration."""
    return gradients.square().sum(0)


@dataclass(frozen=True)
class LayerProfile:
    """What the estimator knows of one layer."""

    sizes: LayerSizes
    table: HeadTable
    kv_head: tuple[int, ...]
    fisher_heads: Float[Tensor, " fisher_units"]  # a head each, a principal channel each, or `head_fraction` of a head
    pca_channels: Float[Tensor, " pca_units"]
    neurons: Float[Tensor, " neurons"]

    @cached_property
    def shapes(self) -> list[tuple[int, int, int]]:
        """(heads, key/value heads, dim) for every channel budget, ready for a search."""
        alive = self.table.alive.cpu()
        groups = torch.zeros(len(alive), self.sizes.kv_heads, dtype=torch.long)
        groups.index_add_(1, torch.tensor(self.kv_head), alive.long())
        counts = zip(alive.sum(1).tolist(), (groups > 0).sum(1).tolist(), self.table.dim.tolist(), strict=True)
        return list(counts)


@dataclass(frozen=True)
class Ranking:
    """All units of one kind over all layers, the least important first, each with the layer it belongs to."""

    importance: Float[Tensor, " units"]
    layer: Tensor
    weights: tuple[int, ...]  # units of each layer

    def ratios(self, fraction: float) -> tuple[list[float], float]:
        """The share of each layer's units among the `fraction` least important, and the threshold that cuts them."""
        total = len(self.importance)
        cut = min(max(fraction, 0.0), 1.0) * total
        whole = int(cut)
        fallen = torch.bincount(self.layer[:whole], minlength=len(self.weights)).tolist()
        if whole < total:  # the unit that straddles the budget falls in part, so that ratios move smoothly
            fallen[int(self.layer[whole])] += cut - whole
        threshold = float(self.importance[min(whole, total - 1)])
        return [count / units for count, units in zip(fallen, self.weights, strict=True)], threshold


def _rank(importances: Sequence[Tensor]) -> Ranking:
    sizes = tuple(len(units) for units in importances)
    order = torch.cat(list(importances)).sort(stable=True)
    layer = torch.arange(len(sizes)).repeat_interleave(torch.tensor(sizes))[order.indices.cpu()]
    return Ranking(order.values.cpu(), layer, sizes)


@dataclass(frozen=True)
class Profile:
    """Everything a plan is made of. `other_parameters` are the model's outside the decoder layers."""

    layers: tuple[LayerProfile, ...]
    other_parameters: int
    bytes_per_value: int = field(default=4)  # of a cached key or value
    head_fraction: float | None = None  # as in SliceConfig: what the importances were made with
    gradient_group: int = GRADIENT_GROUP

    @cached_property
    def rankings(self) -> dict[str, Ranking]:
        return {
            "fisher": _rank([layer.fisher_heads for layer in self.layers]),
            "pca": _rank([layer.pca_channels for layer in self.layers]),
            "neurons": _rank([layer.neurons for layer in self.layers]),
        }

    def neurons_among(self, estimator: Estimator, removed: float) -> float:
        """The share of all neurons that falls when the least important `removed` parameters go.

        The estimator's units of heads and all neurons stand in one ranking, by importance a parameter that the unit's
        mask stands for.
        """
        parameters, neurons = self._falling[estimator]
        return neurons[torch.searchsorted(parameters, removed, right=True) - 1].item()

    @cached_property
    def _falling(self) -> dict[str, Float[Tensor, "2 falls"]]:
        """By estimator: parameters gone and share of neurons gone, as the units of one ranking fall one by one."""
        neurons = [(layer.neurons, layer.sizes.neuron_cost, 1.0, 1) for layer in self.layers]
        found = {}
        for name, units in (("fisher", "fisher_heads"), ("pca", "pca_channels")):
            own = [(getattr(layer, units), layer.sizes) for layer in self.layers]
            kinds = neurons + [(u, s.channels / len(u) * s.channel_cost, MASKED_SHARE, 0) for u, s in own]
            importance = torch.cat([values.cpu() / (cost * share) for values, cost, share, _ in kinds])
            order = importance.argsort(stable=True)
            counts = torch.tensor([len(values) for values, *_ in kinds])
            costs, is_neuron = torch.tensor([(cost, kind) for _, cost, _, kind in kinds], dtype=torch.float64).T
            steps = torch.stack([costs, is_neuron / is_neuron.dot(counts.double())]).repeat_interleave(counts, dim=1)
            found[name] = functional.pad(steps[:, order].cumsum(1), (1, 0))
        return found

    @cached_property
    def dense_decoder(self) -> int:
        return sum(layer.sizes.dense_parameters for layer in self.layers)
