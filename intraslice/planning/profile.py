"""What a plan is made of: sizes, importances by estimator, and all units in one ranking (paper §4). Pure."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional

from intraslice.core.config import GRADIENT_GROUP, MODULE_KINDS, ModuleKind
from intraslice.core.errors import UserError
from intraslice.planning.estimators import Importances
from intraslice.planning.even_heads import EvenHeads, even_heads
from intraslice.planning.head_table import HeadTable
from intraslice.planning.ranking import Ranking, rank
from intraslice.planning.sizes import LayerSizes
from intraslice.planning.widths import block_widths

# Of a head's parameters, those that masks on what enters o_proj stand for: values and output weights, which are half of
# them, and some of what queries and keys are worth. Of 0.5, 0.6, 0.7, 0.8 and 1 the best on three texts.
MASKED_SHARE = 0.7


def unit_cost(sizes: LayerSizes, module: ModuleKind, units: int) -> float:
    """Parameters that go with one of a module's units."""
    return float(sizes.neuron_cost) if module == "mlp" else sizes.channels / units * sizes.channel_cost


def unit_parameters(sizes: LayerSizes, module: ModuleKind, units: int) -> float:
    """Those of them that the unit's mask stands for: what importances are divided by where all units are ranked."""
    return unit_cost(sizes, module, units) * (1.0 if module == "mlp" else MASKED_SHARE)


class Choices(NamedTuple):
    """What a layer may keep where its shapes are a runtime's: heads, the most first, and neurons by the block."""

    heads: list[EvenHeads]
    block_costs: Float[Tensor, " blocks"]  # a parameter, of the least important neurons first


@dataclass(frozen=True)
class LayerProfile:
    """What a plan knows of one layer."""

    sizes: LayerSizes
    table: HeadTable
    kv_head: tuple[int, ...]
    importances: Mapping[str, Importances]  # by estimator; those that look at none are not there

    @cached_property
    def shapes(self) -> list[tuple[int, int, int]]:
        """(heads, key/value heads, dim) for every channel budget, ready for a search."""
        alive = self.table.alive.cpu()
        groups = torch.zeros(len(alive), self.sizes.kv_heads, dtype=torch.long)
        groups.index_add_(1, torch.tensor(self.kv_head), alive.long())
        counts = zip(alive.sum(1).tolist(), (groups > 0).sum(1).tolist(), self.table.dim.tolist(), strict=True)
        return list(counts)

    def choices(self, estimator: str | None) -> Choices:
        """By an estimator's importances, or by None."""
        return Choices(self._even_heads(estimator), self._block_costs(estimator))

    def _even_heads(self, estimator: str | None) -> list[EvenHeads]:
        groups = torch.tensor(self.kv_head).argsort(stable=True).view(self.sizes.kv_heads, -1)
        if estimator is None:  # what goes is what goes first in the table, and costs the more the more is gone
            lasting = self.table.alive.sum(0).double().cpu()  # budgets that a head lives through
            choices = even_heads(self.sizes, groups, lasting, torch.ones_like(lasting))
            return [replace(choice, loss=choice.removed**2 / choices[-1].removed) for choice in choices]
        heads = self.importances[estimator].attention.double().cpu().view(self.sizes.heads, -1).sum(1)
        return even_heads(self.sizes, groups, heads, heads)

    def _block_costs(self, estimator: str | None) -> Float[Tensor, " blocks"]:
        widths = torch.tensor(block_widths(self.sizes.neurons))
        if estimator is None:
            return 1 - widths[1:] / self.sizes.neurons
        lost = functional.pad(self.importances[estimator].mlp.double().cpu().sort().values.cumsum(0), (1, 0))
        return lost[self.sizes.neurons - widths].diff() / (-widths.diff() * self.sizes.neuron_cost)


@dataclass(frozen=True)
class Profile:
    """Everything a plan is made of. `other_parameters` are the model's outside the decoder layers."""

    layers: tuple[LayerProfile, ...]
    other_parameters: int
    bytes_per_value: int = field(default=4)  # of a cached key or value
    head_fraction: float | None = None  # as in SliceConfig: what the importances were made with
    gradient_group: int = GRADIENT_GROUP
    _rankings: dict[tuple[str, ModuleKind], Ranking] = field(
        default_factory=dict, init=False, repr=False, compare=False
    )
    _falls: dict[str, Float[Tensor, "2 falls"]] = field(default_factory=dict, init=False, repr=False, compare=False)
    _choices: dict[str | None, list[Choices]] = field(default_factory=dict, init=False, repr=False, compare=False)

    @property
    def estimators(self) -> tuple[str, ...]:
        """The estimators whose importances are there."""
        return tuple(self.layers[0].importances)

    def importances(self, estimator: str, module: ModuleKind) -> list[Tensor]:
        """Those of every layer's units. Raises UserError where the estimator's are not there."""
        self._require(estimator)
        return [getattr(layer.importances[estimator], module) for layer in self.layers]

    def _require(self, estimator: str | None) -> None:
        if estimator not in (None, *self.estimators):
            raise UserError(
                f"there are no importances of estimator {estimator!r} here, but of {', '.join(self.estimators)}; "
                "load and calibrate the model anew"
            )

    def ranking(self, estimator: str, module: ModuleKind) -> Ranking:
        """All units of one kind of module in one order, made when first asked for."""
        if (estimator, module) not in self._rankings:
            self._rankings[estimator, module] = rank(self.importances(estimator, module))
        return self._rankings[estimator, module]

    def choices(self, estimator: str | None) -> list[Choices]:
        """Every layer's, made when first asked for. Without an estimator's importances, None, all layers give alike."""
        self._require(estimator)
        if estimator not in self._choices:
            self._choices[estimator] = [layer.choices(estimator) for layer in self.layers]
        return self._choices[estimator]

    def neurons_among(self, estimator: str, removed: float) -> float:
        """The share of all neurons that falls when the least important `removed` parameters go.

        The estimator's units of attention and all neurons stand in one ranking, by importance a parameter that the
        unit's mask stands for.
        """
        if estimator not in self._falls:
            self._falls[estimator] = self._fall(estimator)
        parameters, neurons = self._falls[estimator]
        return neurons[torch.searchsorted(parameters, removed, right=True) - 1].item()

    def _fall(self, estimator: str) -> Float[Tensor, "2 falls"]:
        """Parameters gone and share of neurons gone, as the units of one ranking fall one by one."""
        sizes = [layer.sizes for layer in self.layers]
        modules = [
            (values, size, module)
            for module in reversed(MODULE_KINDS)  # MLPs first: equal importances fall in this order
            for values, size in zip(self.importances(estimator, module), sizes, strict=True)
        ]
        importance = torch.cat(
            [values.cpu() / unit_parameters(size, module, len(values)) for values, size, module in modules]
        )
        order = importance.argsort(stable=True)
        counts = torch.tensor([len(values) for values, *_ in modules])
        costs = torch.tensor(
            [unit_cost(size, module, len(values)) for values, size, module in modules], dtype=torch.float64
        )
        is_neuron = torch.tensor([module == "mlp" for *_, module in modules], dtype=torch.float64)
        steps = torch.stack([costs, is_neuron / is_neuron.dot(counts.double())]).repeat_interleave(counts, dim=1)
        return functional.pad(steps[:, order].cumsum(1), (1, 0))

    @cached_property
    def dense_decoder(self) -> int:
        """Parameters of all dense decoder layers."""
        return sum(layer.sizes.dense_parameters for layer in self.layers)
