"""The model as a map, and one layer opened: what a plan keeps of which unit, as plain numbers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

from intraslice.planning.ratios import SlicePlan
from intraslice.planning.sizes import LayerSizes
from intraslice.slicing.units import kept_units

from .plan_views import Source
from .units import Width
from .views import HERE, Provenance


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
    `cross` is None at sparsity 0 and for families that it cannot slice; the latter have no `shortcuts`.
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
    ranks_neurons: bool = True
    source: Provenance = HERE


def map_view(source: Source, plan: SlicePlan) -> MapView:
    """The map of a plan."""
    layers = range(len(plan.layers))
    rows = tuple(_row(source, plan, layer) for layer in layers)
    return MapView(rows, plan.config.order == "one-shot", source.provenance)


def opened_view(source: Source, plan: SlicePlan, layer: int) -> OpenedView:
    """One layer of a plan."""
    units, planned, sparsity = source.units, plan.layers[layer], plan.config.sparsity
    kept = kept_units(units.layers[layer], planned, plan.config.order) if units else None
    return OpenedView(
        layer=layer,
        row=_row(source, plan, layer),
        kv_heads=planned.kv_heads,
        channels=None if kept is None else kept.channels.tolist(),
        neurons=None if kept is None or kept.neurons is None else kept.neurons.tolist(),
        sparsity=sparsity,
        shortcuts=units.shortcuts if units else 0,
        cross=units.width(sparsity) if units and sparsity else None,
        is_comparable=units is not None and units.comparable_width(sparsity) is not None,
        ranks_neurons=plan.config.order == "one-shot",
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
