"""Perplexity of a sweep's models against parameters removed, bytes on disk and measured speed. Pure."""

import math
from collections.abc import Callable, Sequence
from operator import attrgetter
from typing import TypeGuard

from ..i18n.language import gettext, number, translate
from ..ui import figure
from ..ui.figure import Chart, Figure
from ..ui.labels import ESTIMATOR_COLOURS, ESTIMATORS, METHOD_COLOURS, METHODS, SYMBOLS
from .views import SweepPoint, SweepView, frontier

# Markers of the types of the weights: a suffix of the method's symbol, and a size that falls with the number of bits.
MARKERS = {"none": ("", 9), "f16": ("-open", 9), "q8_0": ("", 7), "q5_0": ("", 6), "q4_0": ("", 5)}
MEGABYTE = 1e6
Value = Callable[[SweepPoint], float | None]


def measured_charts(view: SweepView) -> dict[str, Chart | None]:
    """The charts of the measured points, if any; the browser adds the settings of `assets/tried/` to the first."""
    is_rounded = any(point.quantise != "none" for point in view.points)
    is_timed = any(point.prefill is not None for point in view.points)
    return {
        "removed": removed_chart(view),
        "size": size_chart(view) if is_rounded else None,
        "speed": speed_chart(view) if is_timed else None,
    }


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
    fig = Figure(1, "sweep", hovermode="closest")
    add_lines(fig, 1, view, attrgetter("removed"), perplexity_of, gettext("%{{x:.1%}} removed"))
    end = 1.08 * max([point.removed or 0 for point in view.points], default=0.5)
    title = gettext("actual sparsity (layer parameters removed)")
    fig.x_axis(1, title, tickformat=".0%", rangemode="tozero", range=[0, end])
    perplexity_axis(fig, 1, view)
    _dense(fig, view, 1)
    ratios = [point.perplexity and view.dense and point.perplexity / view.dense for point in view.points]
    return fig.chart(
        gettext("Perplexity against parameters removed"),
        gettext(
            "How does perplexity rise with sparsity? {count} of {total} points are measured.",
            count=len(view.points),
            total=view.total,
        ),
        _models(view.points)
        | {
            gettext("Actual sparsity"): [
                translate(point.note) if point.removed is None else number(point.removed, ".1%")
                for point in view.points
            ],
            gettext("Parameters"): [figure.cell(point.parameters, ",") for point in view.points],
            gettext("Perplexity"): [figure.cell(point.perplexity, ".2f") for point in view.points],
            gettext("Perplexity relative to dense"): [figure.cell(ratio, ".2f") for ratio in ratios],
            gettext("KL from dense, nats per token"): [figure.cell(point.divergence, ".3f") for point in view.points],
        },
        hint=gettext("Click a point to load its setting into the controls."),
        protocol=view.protocol,
        picks=list(map(pick_value, view.points)),
    )


def speed_chart(view: SweepView) -> Chart:
    """Perplexity against measured prefill and decode speed, relative to the dense model."""
    fig = Figure(2, "sweep-speed", side_by_side=True, hovermode="closest")
    prefill, decode = gettext("prefill %{{x:.2f}} times as fast"), gettext("decode %{{x:.2f}} times as fast")
    add_lines(fig, 1, view, attrgetter("prefill"), perplexity_of, prefill)
    add_lines(fig, 2, view, attrgetter("decode"), perplexity_of, decode)
    fig.x_axis(1, gettext("prefill speed, relative to dense"), tickformat=".2f")
    fig.x_axis(2, gettext("decode speed, relative to dense"), tickformat=".2f")
    perplexity_axis(fig, 1, view)
    perplexity_axis(fig, 2, view)
    fig.y_axis(2, "")
    _dense(fig, view, 2)
    equal_speed = {"color": "@dense", "width": 1, "dash": "2px,3px"}
    fig.shapes += [figure.upright(panel, 1, equal_speed) for panel in (1, 2)]
    timed = [point for point in view.points if None not in (point.prefill, point.decode, point.perplexity)]
    return fig.chart(
        gettext("Perplexity against speed"),
        gettext("What does speed cost? Models to the right of the vertical line are faster than the dense model."),
        _models(timed)
        | {
            gettext("Prefill speed relative to dense"): [figure.cell(point.prefill, ".2f") for point in timed],
            gettext("Decode speed relative to dense"): [figure.cell(point.decode, ".2f") for point in timed],
            gettext("Perplexity"): [figure.cell(point.perplexity, ".2f") for point in timed],
        },
        protocol=view.speed_protocol,
        picks=list(map(pick_value, timed)),
    )


def perplexity_of(point: SweepPoint) -> float | None:
    """The perplexity, None if it cannot be drawn."""
    return point.perplexity if drawable(point.perplexity) else None


def add_lines(fig: Figure, panel: int, view: SweepView, x_of: Value, y_of: Value, hover: str) -> None:
    """Add a line per method, estimator and type of the weights, over the points that have both values."""
    grouped: dict[tuple[str, str, str], list[tuple[float, float, SweepPoint]]] = {}
    for point in view.points:
        x, y = x_of(point), y_of(point)
        if x is not None and y is not None:
            grouped.setdefault((point.method, point.estimator, point.quantise), []).append((x, y, point))
    for (method, estimator, quantise), points in grouped.items():
        name = line_name(method, estimator, quantise)
        colour = ESTIMATOR_COLOURS.get(estimator, "other") if estimator else METHOD_COLOURS.get(method, "baseline")
        line, (open_or_filled, size) = figure.line(colour, 2), MARKERS[quantise]
        label = gettext(
            "<b>{name}</b>, target %{{customdata[0]}}<br>{words}<br>perplexity %{{customdata[1]}}",
            name=name,
            words=hover,
        )
        fig.curve(
            panel,
            name,
            [y for _, y, _ in points],
            label,
            [figure.rounded(x) for x, _, _ in points],
            mode="lines+markers",
            meta=figure.OVERLAY_ALWAYS,
            legendgroup=name,
            ids=[pick_value(point) for *_, point in points],
            customdata=[
                [number(point.target_sparsity, ".0%"), number(point.perplexity or 0.0, ".2f")] for *_, point in points
            ],
            line=line,
            marker={"size": size, "color": line["color"], "symbol": SYMBOLS.get(method, "circle") + open_or_filled},
        )


def perplexity_axis(fig: Figure, panel: int, view: SweepView) -> None:
    """Make a panel's y axis logarithmic, with limits and ticks for the view's perplexities."""
    values = [value for value in (view.dense, *(point.perplexity for point in view.points)) if drawable(value)]
    low, high = min(values, default=1.0), max(values, default=8.0)
    steps = (1, 2, 5) if high > 8 * low else (1, 1.5, 2, 2.5, 3, 4, 5, 7)
    ticks = [step * 10**power for power in range(9) for step in steps]  # the browser may widen the range
    margin = 0.06 * math.log10(high / low) + 0.03
    limits, labels = [math.log10(low) - 1.5 * margin, math.log10(high) + margin], [number(tick, ",g") for tick in ticks]
    title = gettext("perplexity, log scale")
    fig.y_axis(panel, title, type="log", range=limits, tickvals=ticks, ticktext=labels)


def drawable(perplexity: float | None) -> TypeGuard[float]:
    """Whether the perplexity can be drawn; an infinite one of a broken model is shown in the table only."""
    return perplexity is not None and math.isfinite(perplexity)


def _dense(fig: Figure, view: SweepView, panels: int) -> None:
    """Add the dense model's perplexity as a horizontal line to all panels, with its label in the last."""
    if drawable(view.dense):
        line = {"color": "@dense", "width": 1.4}
        fig.shapes += [figure.across(panel, view.dense, line) for panel in range(1, panels + 1)]
        mark, text = figure.suffix(panels), gettext("dense {perplexity:.1f}", perplexity=view.dense)
        # On a log axis shapes are placed by value, annotations by its logarithm.
        place = (f"x{mark} domain", 1), (f"y{mark}", math.log10(view.dense))
        fig.annotations.append(figure.annotation(text, *place, ("right", "top"), "@dense", 12))


def _models(points: Sequence[SweepPoint]) -> dict[str, list[str]]:
    """The first two columns of each table: a point's line, and its target sparsity."""
    return {
        gettext("Method"): [line_name(point.method, point.estimator, point.quantise) for point in points],
        gettext("Target sparsity"): [number(point.target_sparsity, ".0%") for point in points],
    }


def size_chart(view: SweepView) -> Chart:
    """Perplexity and KL from the dense model against bytes on disk; a step line shows the best model of each size."""
    fig = Figure(2, "sweep-size", side_by_side=True, hovermode="closest")
    best = set()
    heights: tuple[Value, ...] = perplexity_of, attrgetter("divergence")
    for panel, y_of in enumerate(heights, start=1):
        best |= {id(point) for point in _add_frontier(fig, panel, view, y_of)}
        add_lines(fig, panel, view, _megabytes, y_of, gettext("%{{x:.1f}} MB"))
        fig.x_axis(panel, gettext("size on disk, MB"), rangemode="tozero")
    perplexity_axis(fig, 1, view)
    fig.y_axis(2, gettext("KL from dense, nats per token"), rangemode="tozero")
    measured = [point for point in view.points if None not in (point.bytes, point.perplexity)]
    return fig.chart(
        gettext("Perplexity and KL against size on disk"),
        gettext(
            "Prune or quantise? The step line is the frontier: at each size, the best model that is no larger. Weights "
            "are quantised to a GGUF type, dequantised, and evaluated in float32; the size is that of the file, "
            "padding included. Models whose weights are not quantised are shown at their size in memory."
        ),
        _models(measured)
        | {
            gettext("GGUF type"): [type_name(point.quantise) for point in measured],
            gettext("Size on disk, MB"): [figure.cell(_megabytes(point), ".1f") for point in measured],
            gettext("Perplexity"): [figure.cell(point.perplexity, ".2f") for point in measured],
            gettext("KL from dense, nats per token"): [figure.cell(point.divergence, ".4f") for point in measured],
            gettext("On the frontier"): [gettext("yes") if id(point) in best else gettext("no") for point in measured],
        },
        protocol=view.protocol,
        picks=list(map(pick_value, measured)),
    )


def _megabytes(point: SweepPoint) -> float | None:
    return None if point.bytes is None else point.bytes / MEGABYTE


def _add_frontier(fig: Figure, panel: int, view: SweepView, y_of: Value) -> list[SweepPoint]:
    """Add a step line through the best model of each size; returns these models."""
    best = frontier(view.points, y_of)
    line = {"color": "@quiet", "width": 1.4, "dash": "solid", "shape": "hv"}
    x, y = [figure.rounded(_megabytes(point) or 0) for point in best], [y_of(point) or 0 for point in best]
    fig.curve(panel, gettext("frontier"), y, x=x, line=line, legendgroup="frontier")
    return best
