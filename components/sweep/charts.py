"""Perplexity of a sweep's models against parameters removed, and against measured speed. Pure."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import TypeGuard

from ..i18n.language import gettext, number, translate
from ..ui import figure
from ..ui.figure import Chart, Json
from ..ui.labels import ESTIMATOR_COLOURS, ESTIMATORS, METHOD_COLOURS, METHODS, SYMBOLS
from .views import SweepPoint, SweepView

# Markers of the types of the weights: a suffix of the method's symbol, and a size that falls with the number of bits.
MARKERS = {"none": ("", 9), "f16": ("-open", 9), "q8_0": ("", 7), "q5_0": ("", 6), "q4_0": ("", 5)}


def line_name(method: str, estimator: str, quantise: str = "none") -> str:
    """The name of a line, such as "IntraSlice, PCA-aware, q8_0"."""
    parts = [METHODS.get(method, method)]
    parts += [ESTIMATORS.get(estimator, estimator)] if estimator else []
    return ", ".join(parts if quantise == "none" else [*parts, quantise])


def type_name(quantise: str) -> str:
    """The name of a type of the weights."""
    return gettext("not quantised") if quantise == "none" else quantise


def pick_value(point: SweepPoint) -> str:
    """The value that a click on the point sends: sparsity in per cent, and the estimator if there is one."""
    return f"{100 * point.target_sparsity:g} {point.estimator}".strip()


def removed_chart(view: SweepView) -> Chart:
    """Perplexity against actual sparsity; the dense model as a horizontal line."""
    layout = figure.layout_of(1, revision="sweep")
    hover, axes = gettext("%{{x:.1%}} removed"), figure.axes_of(1) | {"showlegend": True}
    data = lines(view, lambda point: point.removed, perplexity_of, hover, axes)
    layout["xaxis"].update(
        title=figure.title(gettext("actual sparsity (layer parameters removed)")), tickformat=".0%", rangemode="tozero"
    )
    layout["xaxis"]["range"] = [0, 1.08 * max([point.removed or 0 for point in view.points], default=0.5)]
    perplexity_axis(layout, view, ["yaxis"])
    layout["shapes"], layout["annotations"] = _dense(view, 1)
    return Chart(
        title=gettext("Perplexity against parameters removed"),
        note=gettext(
            "How does perplexity rise with sparsity? {count} of {total} points are measured.",
            count=len(view.points),
            total=view.total,
        ),
        hint=gettext("Click a point to load its setting into the controls."),
        protocol=view.protocol,
        data=data,
        layout=layout,
        columns=[
            gettext("Method"),
            gettext("Target sparsity"),
            gettext("Actual sparsity"),
            gettext("Parameters"),
            gettext("Perplexity"),
            gettext("Perplexity relative to dense"),
            gettext("KL from dense, nats per token"),
        ],
        rows=[_row(point, view) for point in view.points],
        picks=[pick_value(point) for point in view.points],
    )


def speed_chart(view: SweepView) -> Chart:
    """Perplexity against measured prefill and decode speed, relative to the dense model."""
    layout = figure.layout_of(2, revision="sweep-speed", vertical=False)
    hover, axes = gettext("prefill %{{x:.2f}} times as fast"), {"xaxis": "x", "yaxis": "y", "showlegend": True}
    data = lines(view, lambda point: point.prefill, perplexity_of, hover, axes)
    hover, axes = gettext("decode %{{x:.2f}} times as fast"), {"xaxis": "x2", "yaxis": "y2"}
    data += lines(view, lambda point: point.decode, perplexity_of, hover, axes)
    for axis, title in (
        ("xaxis", gettext("prefill speed, relative to dense")),
        ("xaxis2", gettext("decode speed, relative to dense")),
    ):
        layout[axis].update(title=figure.title(title), tickformat=".2f")
    perplexity_axis(layout, view, ["yaxis", "yaxis2"])
    layout["yaxis2"]["title"] = figure.title("")
    (first_line, _), (second_line, label) = (_dense(view, panel) for panel in (1, 2))
    layout["shapes"] = [*first_line, *second_line, *(_equal_speed(panel) for panel in (1, 2))]
    layout["annotations"] = label
    timed = [
        (point, point.prefill, point.decode, point.perplexity)
        for point in view.points
        if point.prefill is not None and point.decode is not None and point.perplexity is not None
    ]
    return Chart(
        title=gettext("Perplexity against speed"),
        note=gettext("What does speed cost? Models to the right of the vertical line are faster than the dense model."),
        protocol=view.speed_protocol,
        data=data,
        layout=layout,
        side_by_side=True,
        columns=[
            *(
                gettext("Method"),
                gettext("Target sparsity"),
                gettext("Prefill speed relative to dense"),
                gettext("Decode speed relative to dense"),
                gettext("Perplexity"),
            ),
        ],
        rows=[
            [*named(point), number(prefill, ".2f"), number(decode, ".2f"), number(perplexity, ".2f")]
            for point, prefill, decode, perplexity in timed
        ],
        picks=[pick_value(point) for point, *_ in timed],
    )


def perplexity_of(point: SweepPoint) -> float | None:
    """The perplexity, None if it cannot be drawn."""
    return point.perplexity if drawable(point.perplexity) else None


def lines(
    view: SweepView,
    x_of: Callable[[SweepPoint], float | None],
    y_of: Callable[[SweepPoint], float | None],
    hover: str,
    axes: Json,
) -> list[Json]:
    """One line per method, estimator and type of the weights, over the points that have both values.

    `axes` are further properties of each trace.
    """
    grouped: dict[tuple[str, str, str], list[tuple[float, float, SweepPoint]]] = {}
    for point in view.points:
        x, y = x_of(point), y_of(point)
        if x is not None and y is not None:
            grouped.setdefault((point.method, point.estimator, point.quantise), []).append((x, y, point))
    traces = []
    for (method, estimator, quantise), points in grouped.items():
        name = line_name(method, estimator, quantise)
        colour = ESTIMATOR_COLOURS.get(estimator, "other") if estimator else METHOD_COLOURS.get(method, "baseline")
        line, (open_or_filled, size) = figure.line(colour, 2), MARKERS[quantise]
        symbol = SYMBOLS.get(method, "circle") + open_or_filled
        traces.append(
            {
                "type": "scatter",
                "mode": "lines+markers",
                "name": name,
                "meta": figure.GHOST_ALWAYS,
                "legendgroup": name,
                "showlegend": False,
                "x": [figure.rounded(x) for x, _, _ in points],
                "y": [figure.rounded(y) for _, y, _ in points],
                "ids": [pick_value(point) for *_, point in points],
                "customdata": [
                    [number(point.target_sparsity, ".0%"), number(point.perplexity or 0.0, ".2f")]
                    for *_, point in points
                ],
                "line": line,
                "marker": {"size": size, "color": line["color"], "symbol": symbol},
                "hovertemplate": gettext(
                    "<b>{name}</b>, target %{{customdata[0]}}<br>{words}<br>perplexity %{{customdata[1]}}",
                    name=name,
                    words=hover,
                )
                + "<extra></extra>",
                **axes,
            }
        )
    return traces


def perplexity_axis(layout: Json, view: SweepView, axes: Sequence[str]) -> None:
    """Make these axes logarithmic, with limits and ticks for the view's perplexities."""
    layout["hovermode"] = "closest"
    values = [value for value in (view.dense, *(point.perplexity for point in view.points)) if drawable(value)]
    low, high = min(values, default=1.0), max(values, default=10.0)
    steps = (1, 2, 5) if high > 8 * low else (1, 1.5, 2, 3, 4, 5, 7)
    ticks = [step * 10**power for power in range(12) for step in steps if 0.8 * low <= step * 10**power <= 1.2 * high]
    margin = 0.06 * math.log10(high / low) + 0.03
    limits = [math.log10(low) - 1.5 * margin, math.log10(high) + margin]
    for axis in axes:
        layout[axis].update(
            title=figure.title(gettext("perplexity, log scale")), type="log", range=limits, tickvals=ticks
        )
        layout[axis].update(ticktext=[number(tick, ",g") for tick in ticks])


def drawable(perplexity: float | None) -> TypeGuard[float]:
    """Whether the perplexity can be drawn; an infinite one of a broken model is shown in the table only."""
    return perplexity is not None and math.isfinite(perplexity)


def _dense(view: SweepView, panel: int) -> tuple[list[Json], list[Json]]:
    """The dense model's perplexity as a horizontal line, and its label."""
    if not drawable(view.dense):
        return [], []
    mark, text = figure.suffix(panel), gettext("dense {perplexity:.1f}", perplexity=view.dense)
    # On a log axis shapes are placed by value, annotations by its logarithm.
    place = (f"x{mark} domain", 1), (f"y{mark}", math.log10(view.dense))
    line = figure.across(panel, view.dense, {"color": "@dense", "width": 1.4})
    return [line], [figure.annotation(text, *place, ("right", "top"), "@dense", 12)]


def _equal_speed(panel: int) -> Json:
    return figure.upright(panel, 1, {"color": "@dense", "width": 1, "dash": "2px,3px"})


def named(point: SweepPoint) -> list[str]:
    """The first two cells of a point's row: its line, and its target sparsity."""
    return [line_name(point.method, point.estimator, point.quantise), number(point.target_sparsity, ".0%")]


def _row(point: SweepPoint, view: SweepView) -> list[str]:
    if point.perplexity is None or point.removed is None or point.parameters is None:
        return [*named(point), translate(point.note), *["–"] * 4]
    return [
        *named(point),
        number(point.removed, ".1%"),
        number(point.parameters, ","),
        number(point.perplexity, ".2f"),
        "–" if view.dense is None else number(point.perplexity / view.dense, ".2f"),
        "–" if point.divergence is None else number(point.divergence, ".3f"),
    ]
