"""Inputs of a plan: sizes, importances by estimator, and the global ranking of units (paper §4). Pure."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any, TypeVar

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn import functional

from intraslice.core.config import GRADIENT_GROUP, HEAD_STATES, MODULE_KINDS, HeadLock, ModuleKind
from intraslice.core.errors import UserError
from intraslice.planning.estimators import Importances
from intraslice.planning.kept_heads import EvenHeads, HeadTable, even_heads, lock_heads
from intraslice.planning.sizes import LayerSizes, block_widths

Value = TypeVar("Value")
# Of a layer for runtime shapes: sets of heads, the largest first, and costs per parameter of blocks of neurons, the
# least important first.
Choices = tuple[list[EvenHeads], Tensor]
# Fraction of a head's parameters that a mask on the input of o_proj accounts for: value and output weights are half of
# them; the rest is for queries and keys. The best of 0.5, 0.6, 0.7, 0.8 and 1 on three texts.
MASKED_FRACTION = 0.7


def unit_cost(sizes: LayerSizes, module: ModuleKind, units: int) -> float:
    """Parameters removed with one unit of a module."""
    return float(sizes.neuron_cost) if module == "mlp" else sizes.channels / units * sizes.channel_cost


def masked_parameters(sizes: LayerSizes, module: ModuleKind, units: int) -> float:
    """Parameters that the mask of one unit accounts for. The global ranking divides importances by them."""
    return unit_cost(sizes, module, units) * (1.0 if module == "mlp" else MASKED_FRACTION)


@dataclass(frozen=True)
class Ranking:
    """All units of one kind over all layers with their layers, the least important first.

    In NumPy: every operation of torch gives up the interpreter lock, for which a slider's answer would then wait.
    """

    importance: Float[np.ndarray, " units"]
    layer: Int[np.ndarray, " units"]
    counts: tuple[int, ...]  # units of each layer

    def ratios(self, fraction: float) -> tuple[list[float], float]:
        """Each layer's fraction of units among the `fraction` least important ones, and the importance threshold."""
        total = len(self.importance)
        cut = min(max(fraction, 0.0), 1.0) * total
        whole = int(cut)
        removed = np.bincount(self.layer[:whole], minlength=len(self.counts)).tolist()
        if whole < total:  # remove the next unit in part, so that ratios change smoothly with the budget
            removed[int(self.layer[whole])] += cut - whole
        threshold = float(self.importance[min(whole, total - 1)])
        return [count / units for count, units in zip(removed, self.counts, strict=True)], threshold


def rank(importances: Sequence[Tensor]) -> Ranking:
    """Rank all units, given the importances (units) of every layer; the number of units may differ."""
    counts = tuple(len(units) for units in importances)
    order = torch.cat(list(importances)).sort(stable=True)
    layer = torch.arange(len(counts)).repeat_interleave(torch.tensor(counts))[order.indices.cpu()]
    return Ranking(order.values.double().cpu().numpy(), layer.numpy(), counts)


@dataclass(frozen=True)
class LayerProfile:
    """Inputs of a plan for one layer."""

    sizes: LayerSizes
    table: HeadTable
    kv_head: tuple[int, ...]
    importances: Mapping[str, Importances]  # by estimator, of those that compute importances
    kept: frozenset[int] = frozenset()  # locked query heads
    removed: frozenset[int] = frozenset()

    @cached_property
    def shapes(self) -> list[tuple[int, int, int]]:
        """(heads, key/value heads, dim) for every channel budget."""
        alive = self.table.alive.cpu()
        groups = torch.zeros(len(alive), self.sizes.kv_heads, dtype=torch.long)
        groups.index_add_(1, torch.tensor(self.kv_head), alive.long())
        return list(zip(alive.sum(1).tolist(), (groups > 0).sum(1).tolist(), self.table.dim.tolist(), strict=True))

    def heads(self, channels: int) -> tuple[int, ...]:
        """The heads that are kept with a budget of so many channels."""
        return tuple(np.flatnonzero(self.alive[channels]).tolist())

    @cached_property
    def alive(self) -> Bool[np.ndarray, "budgets heads"]:
        """The kept heads of every channel budget."""
        return self.table.alive.cpu().numpy()

    @cached_property
    def rules(self) -> Int[np.ndarray, "budgets heads"] | None:
        """The rule of every head at every channel budget, as in the table."""
        return None if self.table.rule is None else self.table.rule.cpu().numpy()

    def choices(self, estimator: str | None) -> Choices:
        """Candidates for runtime shapes, by an estimator's importances; with None costs grow with the size."""
        sizes, widths = self.sizes, torch.tensor(block_widths(self.sizes.neurons))
        groups = torch.tensor(self.kv_head).argsort(stable=True).view(sizes.kv_heads, -1)
        if estimator is None:  # in the order of the table, at costs that grow with the removed parameters
            survival = self.table.alive.sum(0).double().cpu()  # number of budgets at which a head is kept
            choices = even_heads(sizes, groups, self._locks_first(survival), torch.ones_like(survival))
            choices = [replace(choice, loss=choice.removed**2 / choices[-1].removed) for choice in choices]
            return self._allowed(choices), 1 - widths[1:] / sizes.neurons
        heads, neurons = (
            values.double().cpu() for values in (self.importances[estimator].attention, self.importances[estimator].mlp)
        )
        heads, cumulative = heads.view(sizes.heads, -1).sum(1), functional.pad(neurons.sort().values.cumsum(0), (1, 0))
        costs = cumulative[sizes.neurons - widths].diff() / (-widths.diff() * sizes.neuron_cost)
        return self._allowed(even_heads(sizes, groups, self._locks_first(heads), heads)), costs

    def _locks_first(self, rank: Float[Tensor, " heads"]) -> Float[Tensor, " heads"]:
        """The rank of heads, of which those that are locked as kept come first, and those removed last."""
        rank, beyond = rank.clone(), rank.abs().sum() + 1
        rank[list(self.kept)] += beyond
        rank[list(self.removed)] -= beyond
        return rank

    def _allowed(self, choices: list[EvenHeads]) -> list[EvenHeads]:
        """The sets of heads that obey the locks. Raises UserError if there is none."""
        allowed = [one for one in choices if self.kept <= {*one.heads} and self.removed.isdisjoint(one.heads)]
        if not allowed:
            raise UserError(
                "runtime shapes keep equally many query heads of every key/value head of a layer, so heads {kept} "
                "cannot be kept without heads {removed}; unlock some, or choose free shapes",
                kept=", ".join(map(str, sorted(self.kept))),
                removed=", ".join(map(str, sorted(self.removed))),
            )
        return allowed


@dataclass(frozen=True)
class Profile:
    """All inputs of a plan. `other_parameters` counts those outside the decoder layers."""

    layers: tuple[LayerProfile, ...]
    other_parameters: int
    bytes_per_value: int = field(default=4)  # of a cached key or value
    head_fraction: float | None = None  # as in SliceConfig: used for the importances
    gradient_group: int = GRADIENT_GROUP
    sensitive_scores: bool = True  # as in FitConfig: used for the tables of kept heads
    _computed: dict[tuple[str | None, str], Any] = field(default_factory=dict, init=False, repr=False, compare=False)

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

    def with_locks(self, locks: Sequence[HeadLock]) -> Profile:
        """This profile with locked heads, if there are some."""
        if not locks:
            return self
        layers = list(self.layers)
        for index in {lock[0] for lock in locks}:
            here, layer = [lock for lock in locks if lock[0] == index], layers[index]
            kept, removed = (frozenset(head for *_, head, state in here if state == each) for each in HEAD_STATES)
            table = lock_heads(layer.table, kept, removed, layer.sizes.dim)
            layers[index] = replace(layer, table=table, kept=kept, removed=removed)
        locked = replace(self, layers=tuple(layers))
        locked._computed.update({key: value for key, value in self._computed.items() if "choices" not in key})
        return locked

    def ranking(self, estimator: str, module: ModuleKind) -> Ranking:
        """The global ranking of the units of one kind of module, cached."""
        return self._once((estimator, module), lambda: rank(self.importances(estimator, module)))

    def _once(self, key: tuple[str | None, str], compute: Callable[[], Value]) -> Value:
        if key not in self._computed:
            self._computed[key] = compute()
        return self._computed[key]

    def choices(self, estimator: str | None) -> list[Choices]:
        """Candidates of every layer for runtime shapes, cached. With None all layers have the same costs."""
        self._require(estimator)
        return self._once((estimator, "choices"), lambda: [layer.choices(estimator) for layer in self.layers])

    def neuron_fraction(self, estimator: str, removed: float) -> float:
        """The fraction of all neurons that is removed with the least important `removed` parameters.

        Attention units and neurons share one ranking, by importance per parameter that the unit's mask accounts for.
        """
        parameters, neurons = self._once((estimator, "removal"), lambda: self._removal_curve(estimator))
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
