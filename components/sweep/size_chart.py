"""Perplexity and KL against bytes on disk, for dense and sliced models together, with their frontier. Pure."""

from __future__ import annotations

from typing import NamedTuple

from ..i18n.language import gettext, number
from ..ui import figure
from ..ui.figure import Chart, Figure
from .charts import (
    Value,
    add_lines,
    named,
    perplexity_axis,
    perplexity_of,
    pick_value,
    removed_chart,
    speed_chart,
    type_name,
)
from .views import SweepPoint, SweepView, frontier

MEGABYTE = 1e6


class Charts(NamedTuple):
    """The charts of a sweep; None for those whose points are not measured."""

    removed: Chart | None
    size: Chart | None
    speed: Chart | None


def measured_charts(view: SweepView) -> Charts:
    """The charts of the measured points."""
    rounded = any(point.quantise != "none" for point in view.points)
    timed = any(point.prefill is not None for point in view.points)
    return Charts(
        removed_chart(view) if view.points else None,
        size_chart(view) if rounded else None,
        speed_chart(view) if timed else None,
    )


def size_chart(view: SweepView) -> Chart:
    """Perplexity and KL from the dense model against bytes on disk; a step line shows the best model of each size."""
    fig = Figure(2, "sweep-size", side_by_side=True, hovermode="closest")
    best = set()
    for panel, y_of in enumerate((perplexity_of, _divergence), start=1):
        best |= {id(point) for point in _add_frontier(fig, panel, view, y_of)}
        add_lines(fig, panel, view, _megabytes, y_of, gettext("%{{x:.1f}} MB"))
        fig.x_axis(panel, gettext("size on disk, MB"), rangemode="tozero")
    perplexity_axis(fig, 1, view)
    fig.y_axis(2, gettext("KL from dense, nats per token"), rangemode="tozero")
    measured = [
        (point, size, perplexity)
        for point in view.points
        if (size := _megabytes(point)) is not None and (perplexity := point.perplexity) is not None
    ]
    model = gettext("Method"), gettext("Target sparsity"), gettext("GGUF type"), gettext("Size on disk, MB")
    damage = gettext("Perplexity"), gettext("KL from dense, nats per token"), gettext("On the frontier")
    return fig.chart(
        gettext("Perplexity and KL against size on disk"),
        gettext(
            "Prune or quantise? The step line is the frontier: at each size, the best model that is no larger. Weights "
            "are quantised to a GGUF type, dequantised, and evaluated in float32; the size is that of the file, "
            "padding included. Models whose weights are not quantised are shown at their size in memory."
        ),
        (
            [*model, *damage],
            [
                [
                    *named(point),
                    type_name(point.quantise),
                    number(size, ".1f"),
                    number(perplexity, ".2f"),
                    figure.cell(point.divergence, ".4f"),
                    gettext("yes") if id(point) in best else gettext("no"),
                ]
                for point, size, perplexity in measured
            ],
        ),
        protocol=view.protocol,
        picks=[pick_value(point) for point, *_ in measured],
    )


def _divergence(point: SweepPoint) -> float | None:
    return point.divergence


def _megabytes(point: SweepPoint) -> float | None:
    return None if point.bytes is None else point.bytes / MEGABYTE


def _add_frontier(fig: Figure, panel: int, view: SweepView, y_of: Value) -> list[SweepPoint]:
    """Add a step line through the best model of each size; returns these models."""
    best = frontier(view.points, y_of)
    line = {"color": "@quiet", "width": 1.4, "dash": "solid", "shape": "hv"}
    x, y = [figure.rounded(_megabytes(point) or 0) for point in best], [y_of(point) or 0 for point in best]
    fig.curve(panel, gettext("frontier"), y, x=x, line=line, legendgroup="frontier")
    return best
