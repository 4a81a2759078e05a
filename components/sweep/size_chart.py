"""Perplexity and KL against bytes on disk, for dense and sliced models together, with their frontier. Pure."""

from __future__ import annotations

from typing import NamedTuple

from ..i18n.language import gettext, number
from ..ui import figure
from ..ui.figure import Chart, Json
from .charts import lines, named, perplexity_axis, perplexity_of, pick_value, removed_chart, speed_chart, type_name
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
    layout = figure.layout_of(2, revision="sweep-size", vertical=False)
    by_perplexity = frontier(view.points, perplexity_of)
    by_divergence = frontier(view.points, lambda point: point.divergence)
    left, right = figure.axes_of(1), {"xaxis": "x2", "yaxis": "y2"}
    hover = gettext("%{{x:.1f}} MB")
    data = [
        _steps([(_megabytes(point), point.perplexity) for point in by_perplexity], left),
        *lines(view, _megabytes, perplexity_of, hover, left | {"showlegend": True}),
        _steps([(_megabytes(point), point.divergence) for point in by_divergence], right),
        *lines(view, _megabytes, lambda point: point.divergence, hover, right),
    ]
    for axis in ("xaxis", "xaxis2"):
        layout[axis].update(title=figure.title(gettext("size on disk, MB")), rangemode="tozero")
    perplexity_axis(layout, view, ["yaxis"])
    layout["yaxis2"].update(title=figure.title(gettext("KL from dense, nats per token")), rangemode="tozero")
    measured = [
        (point, size, perplexity)
        for point in view.points
        if (size := _megabytes(point)) is not None and (perplexity := point.perplexity) is not None
    ]
    best = {id(point) for point in (*by_perplexity, *by_divergence)}
    return Chart(
        title=gettext("Perplexity and KL against size on disk"),
        note=gettext(
            "Prune or quantise? The step line is the frontier: at each size, the best model that is no larger. Weights "
            "are quantised to a GGUF type, dequantised, and evaluated in float32; the size is that of the file, "
            "padding included. Models whose weights are not quantised are shown at their size in memory."
        ),
        protocol=view.protocol,
        data=data,
        layout=layout,
        side_by_side=True,
        columns=[
            gettext("Method"),
            gettext("Target sparsity"),
            gettext("GGUF type"),
            gettext("Size on disk, MB"),
            gettext("Perplexity"),
            gettext("KL from dense, nats per token"),
            gettext("On the frontier"),
        ],
        rows=[
            [
                *named(point),
                type_name(point.quantise),
                number(size, ".1f"),
                number(perplexity, ".2f"),
                "–" if point.divergence is None else number(point.divergence, ".4f"),
                gettext("yes") if id(point) in best else gettext("no"),
            ]
            for point, size, perplexity in measured
        ],
        picks=[pick_value(point) for point, *_ in measured],
    )


def _megabytes(point: SweepPoint) -> float | None:
    return None if point.bytes is None else point.bytes / MEGABYTE


def _steps(points: list[tuple[float | None, float | None]], axes: Json) -> Json:
    return {
        "type": "scatter",
        "mode": "lines",
        "name": gettext("frontier"),
        "showlegend": axes["xaxis"] == "x",
        "legendgroup": "frontier",
        "x": [figure.rounded(x) for x, _ in points if x is not None],
        "y": [figure.rounded(y) for _, y in points if y is not None],
        "line": {"color": "@quiet", "width": 1.4, "dash": "solid", "shape": "hv"},
        "hoverinfo": "skip",
        **axes,
    }
