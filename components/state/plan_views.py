"""Cached plans of a calibration, and their views for the page: ratios, sorted importances, the map, one layer."""

import threading
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, NamedTuple, TypeVar
from weakref import WeakValueDictionary

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from intraslice.core.config import ModuleKind, SliceConfig
from intraslice.core.errors import UserError
from intraslice.core.registry import ESTIMATORS
from intraslice.planning.profile import Profile
from intraslice.planning.ratios import CONTEXT, SlicePlan, flops_per_token, head_rules, make_plan
from intraslice.planning.sizes import LayerSizes
from intraslice.slicing.units import kept_units

from ..i18n.language import language
from .caches import BoundedCache
from .request import CalibrationKey
from .units import TOLERANCE, ModelUnits, Width
from .views import HERE, ConvergenceView, ImportanceCurve, LayerView, PlanView, Provenance

Value = TypeVar("Value")
CURVE_POINTS = 160  # more cannot be told apart on a screen


@dataclass(frozen=True)
class SortedImportances:
    """Ascending importances of one kind of unit: per layer, and of all layers together."""

    unit: str
    layers: Sequence[Float[np.ndarray, " units"]]
    all_layers: Float[np.ndarray, " all_units"]


@dataclass(frozen=True)
class Source:
    """What plans are computed from: a profile and its calibration. Profiles of earlier sequences have no `units`."""

    profile: Profile
    head_weights: int  # of the output head
    calibration: CalibrationKey | None = None
    provenance: Provenance = HERE
    units: ModelUnits | None = None

    @cached_property
    def importances(self) -> dict[str, dict[ModuleKind, SortedImportances]]:
        """Sorted importances by estimator and kind of module."""
        profile = self.profile
        return {
            estimator: {
                "attention": _sorted(ESTIMATORS[estimator].units, profile.importances(estimator, "attention")),
                "mlp": _sorted("neurons", profile.importances(estimator, "mlp")),
            }
            for estimator in profile.estimators
            if estimator in ESTIMATORS  # a cached profile may have a user's estimator that is not registered now
        }


class Plans:
    """Cached plans by source and slicing config, and what the page shows of them."""

    def __init__(self) -> None:
        self._shown: BoundedCache[Hashable, Any] = BoundedCache(4_000, entry_bytes=30_000)  # at most
        self._lock = threading.Lock()
        self._computing: WeakValueDictionary[Hashable, threading.Lock] = WeakValueDictionary()

    def plan(self, source: Source, config: SliceConfig) -> SlicePlan:
        """What is removed from each layer. Raises UserError if the model does not allow it."""
        return self.shown(source, config, "plan", lambda: make_plan(source.profile, config))

    def simplest(self, source: Source | None, config: SliceConfig) -> SliceConfig:
        """The config without a cap and ratios set manually that change no size: the same slice, with the same numbers.

        Without a source the config is returned as it is.
        """
        if source is None or (config.cap == SliceConfig.cap and not config.locked):
            return config
        simpler = replace(config, cap=SliceConfig.cap, locked=())
        try:
            plans = [self.plan(source, each).layers for each in (config, simpler)]
        except UserError:
            return config
        sizes = [[(layer.heads, layer.dim, layer.neurons) for layer in layers] for layers in plans]
        return simpler if sizes[0] == sizes[1] else config

    def shown(self, source: Source, config: SliceConfig, about: Hashable, show: Callable[[], Value]) -> Value:
        """What `show` returns for a plan and `about`, such as a chart: made once in each language for all clients.

        The others wait meanwhile: thirty who were given the same file ask at once, and would all slow the slider down.
        """
        key = (source.calibration, source.provenance, tuple(ESTIMATORS), config, about, language())
        cached: Value | None = self._shown.get(key)
        if cached is not None:
            return cached
        with self._lock:
            computing = self._computing.setdefault(key, threading.Lock())
        with computing:
            cached = self._shown.get(key)
            return self._shown.put(key, show()) if cached is None else cached

    def view(self, source: Source, config: SliceConfig) -> PlanView:
        """The plan as plain numbers, with the ratios of the other estimators. Raises UserError as `plan` does."""
        return self.shown(source, config, "view", lambda: self._view(source, config))

    def _view(self, source: Source, config: SliceConfig) -> PlanView:
        names = [
            name
            for name in reversed(ESTIMATORS)  # the first, which is the default, is drawn last and so on top
            if (name in source.profile.estimators or not ESTIMATORS[name].importance)
            and (name != config.estimator or config.locked)
        ]
        plan = self.plan(source, config)
        others = [self.plan(source, replace(config, estimator=name, locked=())) for name in names]
        return PlanView(
            estimator="manual" if config.locked else config.estimator,
            source=source.provenance,
            target_sparsity=config.sparsity,
            removed=plan.removed_fraction,
            bias=plan.reasons.bias,
            cap=config.cap,
            layers=tuple(
                LayerView(
                    attention=kept.attention_ratio,
                    mlp=kept.mlp_ratio,
                    heads=len(kept.heads),
                    heads_dense=dense.sizes.heads,
                    dim=kept.dim,
                    dim_dense=dense.sizes.dim,
                    neurons=kept.neurons,
                    neurons_dense=dense.sizes.neurons,
                )
                for kept, dense in zip(plan.layers, source.profile.layers, strict=True)
            ),
            others={
                name: tuple((layer.attention_ratio, layer.mlp_ratio) for layer in other.layers)
                for name, other in zip(names, others, strict=True)
            },
            parameters_dense=plan.parameters.dense_total,
            parameters_sliced=plan.parameters.sliced_total,
            decoder=(plan.parameters.dense_decoder, plan.parameters.sliced_decoder),
            kv=plan.kv_bytes_per_token,
            flops=flops_per_token(source.profile, plan, source.head_weights),
            context=CONTEXT,
            bytes_per_value=source.profile.bytes_per_value,
        )


def importance_curves(source: Source, plan: SlicePlan, layer: int) -> dict[str, ImportanceCurve]:
    """The importances of `layer` by kind of module: of the plan's estimator, or else of the profile's first one."""
    estimator = plan.config.estimator if plan.config.estimator in source.importances else source.profile.estimators[0]
    curves: dict[str, ImportanceCurve] = {}
    for module, units in source.importances[estimator].items():
        ratios = [getattr(kept, f"{module}_ratio") for kept in plan.layers]
        threshold, both = getattr(plan.reasons, f"{module}_threshold"), (units.all_layers, units.layers[layer])
        below = -np.inf if threshold is None else threshold
        all_below, chosen_below = (int(np.searchsorted(ascending, below)) / len(ascending) for ascending in both)
        curves[module] = ImportanceCurve(
            unit=units.unit,
            all_layers=_curve_points(units.all_layers),
            chosen=_curve_points(units.layers[layer]),
            threshold=threshold,
            all_below=all_below,
            chosen_below=chosen_below,
            one_by_one=plan.config.shapes == "free",
            rank=1 + sum(ratio > ratios[layer] for ratio in ratios),
            rules=head_rules(source.profile, plan, layer) if module == "attention" else (),
        )
    return curves


def _sorted(unit: str, layers: Sequence[Tensor]) -> SortedImportances:
    ascending = [np.sort(layer.detach().float().cpu().numpy()) for layer in layers]
    return SortedImportances(unit, ascending, np.sort(np.concatenate(ascending)))


def _curve_points(ascending: Float[np.ndarray, " units"]) -> list[float]:
    """At most `CURVE_POINTS` evenly spaced values, descending."""
    count = min(CURVE_POINTS, len(ascending))
    points: list[float] = ascending[np.linspace(len(ascending) - 1, 0, count).round().astype(int)].tolist()
    return points


def convergence_view(plans: Mapping[int, SlicePlan], all_sequences: int) -> ConvergenceView:
    """The distances of plans to the last one; `plans` are by the number of calibration sequences."""
    ratios = torch.tensor(
        [[(layer.attention_ratio, layer.mlp_ratio) for layer in plan.layers] for plan in plans.values()]
    )
    distances = (ratios - ratios[-1]).abs()  # (plans, layers, modules)
    attention, mlp = distances.mean(1).T.tolist()
    return ConvergenceView(tuple(plans), attention, mlp, distances.flatten(1).amax(1).tolist(), all_sequences)


class MapRow(NamedTuple):
    """One layer of the map; without scores before a calibration is at hand."""

    sizes: LayerSizes
    kv_head: tuple[int, ...]  # of each query head
    heads: tuple[int, ...]  # kept
    dim: int  # channels of a kept head's values
    neurons: int  # kept
    scores: Sequence[float] = ()  # of each head: fraction of the layer's
    explained: Sequence[float] = ()  # of each head's output, on `dim` principal axes
    curve: Sequence[float] = ()  # scores of neurons at evenly spaced ranks, best first; their mean is 1
    held: float | None = None  # fraction of all neurons' score that the kept ones hold


@dataclass(frozen=True)
class MapView:
    """All layers. `ranks_neurons` is whether neurons are known before slicing: not in the sequential order."""

    rows: tuple[MapRow, ...]
    ranks_neurons: bool
    source: Provenance = HERE


@dataclass(frozen=True)
class OpenedView:
    """One layer with the units that are kept, and what cross-module slicing makes of it at equal parameters.

    `channels` has a mask of every key/value head, None before a calibration; `neurons` is a mask, None while unknown.
    `cross` is None at sparsity 0 and for families that it cannot slice; the latter have no `shortcuts`. After the last
    layer the width is the dense one again.
    """

    layer: int
    row: MapRow
    kv_heads: int  # kept
    channels: Sequence[Sequence[bool]] | None
    neurons: Sequence[bool] | None
    sparsity: float
    shortcuts: int
    cross: Width | None
    is_comparable: bool = True  # whether the width removes about as many parameters
    is_last: bool = False
    ranks_neurons: bool = True
    rules: tuple[str, ...] = ()  # of each query head, as in `ImportanceCurve`
    source: Provenance = HERE


def map_view(source: Source, plan: SlicePlan) -> MapView:
    """The map of a plan."""
    layers = range(len(plan.layers))
    rows = tuple(_row(source, plan, layer) for layer in layers)
    return MapView(rows, plan.config.order == "one-shot", source.provenance)


def opened_view(source: Source, plan: SlicePlan, layer: int) -> OpenedView:
    """One layer of a plan."""
    units, planned, sparsity = source.units, plan.layers[layer], plan.config.sparsity
    channels, neurons = kept_units(units.layers[layer], planned, plan.config.order) if units else (None, None)
    cross = units.width(sparsity) if units and sparsity else None
    return OpenedView(
        layer=layer,
        row=_row(source, plan, layer),
        kv_heads=planned.kv_heads,
        channels=None if channels is None else channels.tolist(),
        neurons=None if neurons is None else neurons.tolist(),
        sparsity=sparsity,
        shortcuts=units.shortcuts if units else 0,
        cross=cross,
        is_comparable=cross is not None and abs(cross.removed - sparsity) <= TOLERANCE,
        is_last=layer == len(plan.layers) - 1,
        ranks_neurons=plan.config.order == "one-shot",
        rules=head_rules(source.profile, plan, layer),
        source=source.provenance,
    )


def _row(source: Source, plan: SlicePlan, layer: int) -> MapRow:
    dense, kept = source.profile.layers[layer], plan.layers[layer]
    row = MapRow(dense.sizes, dense.kv_head, kept.heads, kept.dim, kept.neurons)
    if source.units is None:
        return row
    scores = source.units.scores[layer]
    return row._replace(
        scores=scores.heads,
        explained=scores.explained[:, kept.dim - 1].tolist(),
        curve=scores.neurons,
        held=float(scores.held[kept.neurons - 1]) if kept.neurons else 0.0,
    )
