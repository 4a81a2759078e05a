"""Inputs of a plan: sizes, importances by estimator, and the global ranking of units (paper §4). Pure."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torch.nn import functional

from intraslice.core.config import GRADIENT_GROUP, MODULE_KINDS, ModuleKind
from intraslice.core.errors import UserError
from intraslice.planning.estimators import Importances
from intraslice.planning.head_table import EvenHeads, HeadTable, even_heads
from intraslice.planning.ranking import Ranking, rank
from intraslice.planning.sizes import LayerSizes, block_widths

# Fraction of a head's parameters that a mask on the input of o_proj accounts for: value and output weights are half of
# them; the rest is for queries and keys. The best of 0.5, 0.6, 0.7, 0.8 and 1 on three texts.
MASKED_FRACTION = 0.7


def unit_cost(sizes: LayerSizes, module: ModuleKind, units: int) -> float:
    """Parameters removed with one unit of a module."""
    return float(sizes.neuron_cost) if module == "mlp" else sizes.channels / units * sizes.channel_cost


def masked_parameters(sizes: LayerSizes, module: ModuleKind, units: int) -> float:
    """Parameters that the mask of one unit accounts for. The global ranking divides importances by them."""
    return unit_cost(sizes, module, units) * (1.0 if module == "mlp" else MASKED_FRACTION)


class Choices(NamedTuple):
    """Candidates of a layer for runtime shapes: sets of heads, the largest first, and costs of blocks of neurons."""

    heads: list[EvenHeads]
    block_costs: Float[Tensor, " blocks"]  # per parameter, the least important neurons first


@dataclass(frozen=True)
class LayerProfile:
    """Inputs of a plan for one layer."""

    sizes: LayerSizes
    table: HeadTable
    kv_head: tuple[int, ...]
    importances: Mapping[str, Importances]  # by estimator, of those that compute importances

    @cached_property
    def shapes(self) -> list[tuple[int, int, int]]:
        """(heads, key/value heads, dim) for every channel budget."""
        alive = self.table.alive.cpu()
        groups = torch.zeros(len(alive), self.sizes.kv_heads, dtype=torch.long)
        groups.index_add_(1, torch.tensor(self.kv_head), alive.long())
        counts = zip(alive.sum(1).tolist(), (groups > 0).sum(1).tolist(), self.table.dim.tolist(), strict=True)
        return list(counts)

    def heads(self, channels: int) -> tuple[int, ...]:
        """The heads that are kept with a budget of so many channels."""
        return tuple(np.flatnonzero(self._alive[channels]).tolist())

    @cached_property
    def _alive(self) -> Bool[np.ndarray, "budgets heads"]:
        return self.table.alive.cpu().numpy()

    def choices(self, estimator: str | None) -> Choices:
        """Candidates for runtime shapes, by an estimator's importances; with None costs grow with the size."""
        return Choices(self._even_heads(estimator), self._block_costs(estimator))

    def _even_heads(self, estimator: str | None) -> list[EvenHeads]:
        groups = torch.tensor(self.kv_head).argsort(stable=True).view(self.sizes.kv_heads, -1)
        if estimator is None:  # in the order of the table, at costs that grow with the removed parameters
            survival = self.table.alive.sum(0).double().cpu()  # number of budgets at which a head is kept
            choices = even_heads(self.sizes, groups, survival, torch.ones_like(survival))
            return [replace(choice, loss=choice.removed**2 / choices[-1].removed) for choice in choices]
        heads = self.importances[estimator].attention.double().cpu().view(self.sizes.heads, -1).sum(1)
        return even_heads(self.sizes, groups, heads, heads)

    def _block_costs(self, estimator: str | None) -> Float[Tensor, " blocks"]:
        widths = torch.tensor(block_widths(self.sizes.neurons))
        if estimator is None:
            return 1 - widths[1:] / self.sizes.neurons
        cumulative = functional.pad(self.importances[estimator].mlp.double().cpu().sort().values.cumsum(0), (1, 0))
        return cumulative[self.sizes.neurons - widths].diff() / (-widths.diff() * self.sizes.neuron_cost)


@dataclass(frozen=True)
class Profile:
    """All inputs of a plan. `other_parameters` counts those outside the decoder layers."""

    layers: tuple[LayerProfile, ...]
    other_parameters: int
    bytes_per_value: int = field(default=4)  # of a cached key or value
    head_fraction: float | None = None  # as in SliceConfig: used for the importances
    gradient_group: int = GRADIENT_GROUP
    _rankings: dict[tuple[str, ModuleKind], Ranking] = field(
        default_factory=dict, init=False, repr=False, compare=False
    )
    _removal_curves: dict[str, Float[np.ndarray, "2 steps"]] = field(
        default_factory=dict, init=False, repr=False, compare=False
    )
    _choices: dict[str | None, list[Choices]] = field(default_factory=dict, init=False, repr=False, compare=False)

    @property
    def estimators(self) -> tuple[str, ...]:
        """The estimators whose importances this profile has."""
        return tuple(self.layers[0].importances)

    def importances(self, estimator: str, module: ModuleKind) -> list[Tensor]:
        """Importances of every layer's units. Raises UserError if the estimator's are missing."""
        self._require(estimator)
        return [getattr(layer.importances[estimator], module) for layer in self.layers]

    def _require(self, estimator: str | None) -> None:
        if estimator not in (None, *self.estimators):
            raise UserError(
                "estimator must be one of {names} for this calibration, got {estimator!r}; load and calibrate the "
                "model again, or choose importances that were computed for this model",
                names=", ".join(self.estimators),
                estimator=estimator,
            )

    def ranking(self, estimator: str, module: ModuleKind) -> Ranking:
        """The global ranking of the units of one kind of module, cached."""
        if (estimator, module) not in self._rankings:
            self._rankings[estimator, module] = rank(self.importances(estimator, module))
        return self._rankings[estimator, module]

    def choices(self, estimator: str | None) -> list[Choices]:
        """Candidates of every layer for runtime shapes, cached. With None all layers have the same costs."""
        self._require(estimator)
        if estimator not in self._choices:
            self._choices[estimator] = [layer.choices(estimator) for layer in self.layers]
        return self._choices[estimator]

    def neuron_fraction(self, estimator: str, removed: float) -> float:
        """The fraction of all neurons that is removed with the least important `removed` parameters.

        Attention units and neurons share one ranking, by importance per parameter that the unit's mask accounts for.
        """
        if estimator not in self._removal_curves:
            self._removal_curves[estimator] = self._removal_curve(estimator)
        parameters, neurons = self._removal_curves[estimator]
        return float(neurons[np.searchsorted(parameters, removed, side="right") - 1])

    def _removal_curve(self, estimator: str) -> Float[np.ndarray, "2 steps"]:
        """Removed parameters and removed fraction of neurons after 0, 1, 2 ... units of the ranking."""
        sizes = [layer.sizes for layer in self.layers]
        modules = [
            (values, size, module)
            for module in reversed(MODULE_KINDS)  # MLPs first: the order of equal importances
            for values, size in zip(self.importances(estimator, module), sizes, strict=True)
        ]
        importance = torch.cat(
            [values.cpu() / masked_parameters(size, module, len(values)) for values, size, module in modules]
        )
        order = importance.argsort(stable=True)
        counts = torch.tensor([len(values) for values, *_ in modules])
        costs = torch.tensor(
            [unit_cost(size, module, len(values)) for values, size, module in modules], dtype=torch.float64
        )
        is_neuron = torch.tensor([module == "mlp" for *_, module in modules], dtype=torch.float64)
        steps = torch.stack([costs, is_neuron / is_neuron.dot(counts.double())]).repeat_interleave(counts, dim=1)
        return functional.pad(steps[:, order].cumsum(1), (1, 0)).numpy()

    @cached_property
    def dense_decoder(self) -> int:
        """Parameters of all dense decoder layers."""
        return sum(layer.sizes.dense_parameters for layer in self.layers)
