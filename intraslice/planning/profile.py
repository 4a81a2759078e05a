"""What a plan is made of: sizes, importances by estimator, and all units in one ranking (paper §4). Pure."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional

from intraslice.config import GRADIENT_GROUP, ModuleKind
from intraslice.errors import UserError
from intraslice.planning.estimators import Importances
from intraslice.planning.head_table import HeadTable
from intraslice.planning.ranking import Ranking, rank
from intraslice.planning.sizes import LayerSizes

# Of a head's parameters, those that masks on what enters o_proj stand for: values and output weights, which are half of
# them, and some of what queries and keys are worth. Of 0.5, 0.6, 0.7, 0.8 and 1 the best on three texts.
MASKED_SHARE = 0.7


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

    @property
    def estimators(self) -> tuple[str, ...]:
        """The estimators whose importances are there."""
        return tuple(self.layers[0].importances)

    def importances(self, estimator: str, module: ModuleKind) -> list[Tensor]:
        """Those of every layer's units. Raises UserError where the estimator's are not there."""
        if estimator not in self.estimators:
            raise UserError(
                f"there are no importances of estimator {estimator!r} here, but of {', '.join(self.estimators)}; "
                "load and calibrate the model anew"
            )
        return [getattr(layer.importances[estimator], module) for layer in self.layers]

    def ranking(self, estimator: str, module: ModuleKind) -> Ranking:
        """All units of one kind of module in one order, made when first asked for."""
        if (estimator, module) not in self._rankings:
            self._rankings[estimator, module] = rank(self.importances(estimator, module))
        return self._rankings[estimator, module]

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
        units = [
            (values, size.neuron_cost, 1.0, 1)
            for values, size in zip(self.importances(estimator, "mlp"), sizes, strict=True)
        ]
        units += [
            (values, size.channels / len(values) * size.channel_cost, MASKED_SHARE, 0)
            for values, size in zip(self.importances(estimator, "attention"), sizes, strict=True)
        ]
        importance = torch.cat([values.cpu() / (cost * share) for values, cost, share, _ in units])
        order = importance.argsort(stable=True)
        counts = torch.tensor([len(values) for values, *_ in units])
        costs, is_neuron = torch.tensor([(cost, flag) for _, cost, _, flag in units], dtype=torch.float64).T
        steps = torch.stack([costs, is_neuron / is_neuron.dot(counts.double())]).repeat_interleave(counts, dim=1)
        return functional.pad(steps[:, order].cumsum(1), (1, 0))

    @cached_property
    def dense_decoder(self) -> int:
        """Parameters of all dense decoder layers."""
        return sum(layer.sizes.dense_parameters for layer in self.layers)
