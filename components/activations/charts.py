"""The charts of the Activations tab, from plain numbers (`views.py`). Pure."""

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Callable
from itertools import accumulate
from statistics import fmean

from ..i18n.language import gettext, lazy_gettext, number, translate
from ..ui import figure, formatting
from ..ui.figure import Chart, Json
from ..ui.labels import METHOD_COLOURS, METHODS, Terms
from .views import Histogram, PlaceShift, ShiftView

TITLES = {
    "shift": lambda _: gettext("Activation shift: intra-module against cross-module"),
    "histograms": lambda layer: gettext("Activation distribution, layer {layer}", layer=layer),
}
PLACES = Terms(
    {
        "residual": lazy_gettext("Residual stream"),
        "attention": lazy_gettext("Attention output"),
        "mlp": lazy_gettext("MLP output"),
    }
)
MEASURES = Terms(
    {
        "error": lazy_gettext("relative error"),
        "cosine": lazy_gettext("cosine"),
        "distance": lazy_gettext("distance, in σ"),
    }
)


def shift_chart(view: ShiftView, selected: int = 0) -> Chart:
    """The residual stream's error, cosine and distribution distance by layer, one line per method."""
    layers = len(next(iter(view.methods.values())).places["residual"])
    layout = figure.layout_of(3, revision=f"shift-{layers}")
    data: list[Json] = []
    for row, (measure, label) in enumerate(MEASURES.items(), start=1):
        axes = figure.axes_of(row)
        for method, method_shift in view.methods.items():
            name, colour = METHODS[method], METHOD_COLOURS[method]
            values = [getattr(shift, measure) for shift in method_shift.places["residual"]]
            line = {**_line(name, values, figure.line(colour, 2.4)), **axes}
            data.append({**line, "legendgroup": method, "showlegend": row == 1, "meta": figure.GHOST_ALWAYS})
            if measure == "distance":
                continue
            values = [getattr(shift, f"massive_{measure}") for shift in method_shift.places["residual"]]
            # Massive tokens have another scale: their lines are hidden until the reader turns them on in the legend.
            massive = {
                **_line(gettext("{method}, massive tokens", method=name), values, figure.line(colour, 1.2)),
                **axes,
            }
            data.append(
                {**massive, "legendgroup": f"{method}-massive", "showlegend": row == 1, "visible": "legendonly"}
            )
        layout[f"yaxis{figure.suffix(row)}"].update(title=figure.title(label), nticks=5)
    layout["yaxis"].update(tickformat=".0%", rangemode="tozero")
    layout["yaxis3"].update(rangemode="tozero")
    figure.layer_axes(layout, 3, layers)
    layout["shapes"] = [figure.band(selected)]
    return Chart(
        title=TITLES["shift"](selected),
        note=gettext(
            "Which method stays closer to the dense model? The residual stream after each layer, compared with "
            "the dense model's; {removed}. Closer means a lower error and distance and a higher cosine.",
            removed=removed(view),
        ),
        hint=gettext("Click a layer."),
        data=data,
        layout=layout,
        columns=[
            gettext("Layer"),
            *(f"{METHODS[method]}: {translate(column)}" for method in view.methods for column in _COLUMNS),
        ],
        rows=[
            [
                str(layer),
                *(cell for method in view.methods.values() for cell in _cells(method.places["residual"][layer])),
            ]
            for layer in range(layers)
        ],
        layers=layers,
        selected=selected,
    )


_COLUMNS = (
    *(
        lazy_gettext("error"),
        lazy_gettext("error (massive tokens)"),
        lazy_gettext("cosine"),
        lazy_gettext("cosine (massive tokens)"),
    ),
    lazy_gettext("distance"),
)


def histogram_chart(view: ShiftView, layer: int) -> Chart:
    """The distributions of the residual stream, the attention output and the MLP output of one layer."""
    layout = figure.layout_of(len(PLACES), revision=f"histograms-{layer}", vertical=False)
    layout["annotations"] = []
    layout["legend"]["y"] = 1.1  # above the panels' headings
    reference = next(iter(view.methods.values()))
    layer = min(layer, len(reference.dense["residual"]) - 1)
    data: list[Json] = []
    rows: list[list[str]] = []
    for column, (place, label) in enumerate(PLACES.items(), start=1):
        axes = figure.axes_of(column)
        dense = reference.dense[place][layer]
        curves: list[tuple[str, str, Histogram, PlaceShift | None]] = [(gettext("Dense"), "dense", dense, None)]
        for method, method_shift in view.methods.items():
            place_shift = method_shift.places[place][layer]
            curves.append((METHODS[method], METHOD_COLOURS[method], place_shift.histogram, place_shift))
        for name, colour, histogram, shift in curves:
            fill = {"fill": "tozeroy", "fillcolor": "@grid"} if colour == "dense" else {"meta": figure.GHOST_ALWAYS}
            data.append({**_steps(name, histogram, colour), **fill, **axes, "showlegend": column == 1})
            rows.append([label, name, *_moments(histogram), *(_shift(shift) if shift else ["–", "–", "–"])])
        mark = figure.suffix(column)
        layout[f"xaxis{mark}"].update(title=figure.title(gettext("value of a channel")), nticks=5, range=_middle(dense))
        layout[f"yaxis{mark}"].update(
            title=figure.title(gettext("density") if column == 1 else ""), nticks=4, rangemode="tozero"
        )
        layout["annotations"].append(figure.heading(f"<b>{label}</b>", axes))
    return Chart(
        title=TITLES["histograms"](layer),
        note=gettext(
            "How does slicing change the values? Values of all channels, ordinary tokens only; {removed}. Shown: the "
            "middle 98% of the dense values.",
            removed=removed(view),
        ),
        data=data,
        layout=layout,
        columns=[
            *(
                gettext("Activation"),
                gettext("Model"),
                gettext("Mean"),
                gettext("Standard deviation"),
                gettext("Excess kurtosis"),
            ),
            *(gettext("Error"), gettext("Cosine"), gettext("Distance")),
        ],
        rows=rows,
        side_by_side=True,
    )


def finding(view: ShiftView) -> str:
    """Each method's error averaged over the layers, as text."""
    means = {name: fmean(shift.error for shift in method.places["residual"]) for name, method in view.methods.items()}
    return ", ".join(gettext("{method} {mean:.0%}", method=METHODS[name], mean=mean) for name, mean in means.items())


def protocol(view: ShiftView) -> str:
    """The text and the settings of the measurement, as text."""
    massive = gettext("no massive tokens")
    if view.massive:
        massive = gettext("{count} massive tokens, measured separately", count=view.massive)
    measured_on = formatting.provenance(view.source) or gettext("Text: {text}.", text=view.text)
    values = {"tokens": view.tokens, "window": view.window, "massive": massive, "measured_on": measured_on}
    if view.order == "one-shot":
        return gettext(
            "Both methods are applied in the one-shot order. Error and cosine are medians over the ordinary tokens "
            "among {tokens:,} held-out tokens in windows of {window} ({massive}); the distance compares all values "
            "of the ordinary tokens. {measured_on}",
            **values,
        )
    return gettext(
        "Both methods are applied in the sequential order. Error and cosine are medians over the ordinary tokens among "
        "{tokens:,} held-out tokens in windows of {window} ({massive}); the distance compares all values of the "
        "ordinary tokens. {measured_on}",
        **values,
    )


def removed(view: ShiftView) -> str:
    """The actual sparsity of each method, as text."""
    shares = gettext(" and ").join(
        gettext("{method} {share:.1%}", method=METHODS[name], share=method.removed)
        for name, method in view.methods.items()
    )
    return gettext("layer parameters removed: {shares}", shares=shares)


def _line(name: str, values: list[float], line: Json) -> Json:
    return {
        "type": "scatter",
        "mode": "lines",
        "name": name,
        "x": list(range(len(values))),
        "y": [None if math.isnan(value) else figure.rounded(value) for value in values],
        "line": line,
        "hovertemplate": name + " %{y}<extra></extra>",
    }


def _middle(histogram: Histogram) -> list[float]:
    """The value range that holds the middle 98 % of the distribution."""
    bins = len(histogram.density)
    width = (histogram.high - histogram.low) / bins
    cumulative = [total * width for total in accumulate(histogram.density)]
    first, last = bisect_left(cumulative, 0.01), bisect_left(cumulative, 0.99)
    return [figure.rounded(histogram.low + width * edge) for edge in (first, min(last, bins - 1) + 1)]


def _steps(name: str, histogram: Histogram, colour: str) -> Json:
    """The density curve without the end bins, which count all values beyond the edges."""
    bins = len(histogram.density)
    width = (histogram.high - histogram.low) / bins
    return {
        "type": "scatter",
        "mode": "lines",
        "name": name,
        "legendgroup": name,
        "x": [figure.rounded(histogram.low + (index + 0.5) * width) for index in range(1, bins - 1)],
        "y": [figure.rounded(value) for value in histogram.density[1:-1]],
        "line": {**figure.line(colour, 1.4 if colour == "dense" else 2), "shape": "hvh"},
        "hovertemplate": name + " %{y:.3~g}<extra></extra>",
    }


def _cells(shift: PlaceShift) -> list[str]:
    return [
        number(shift.error, ".1%"),
        _or_dash(shift.massive_error, lambda value: number(value, ".1%")),
        number(shift.cosine, ".3f"),
        _or_dash(shift.massive_cosine, lambda value: number(value, ".4f")),
        number(shift.distance, ".3f"),
    ]


def _or_dash(value: float, formatter: Callable[[float], str]) -> str:
    return "–" if math.isnan(value) else formatter(value)


def _moments(histogram: Histogram) -> list[str]:
    return [number(histogram.mean, ".3f"), number(histogram.spread, ".3f"), number(histogram.kurtosis, ",.1f")]


def _shift(shift: PlaceShift) -> list[str]:
    return [number(shift.error, ".1%"), number(shift.cosine, ".3f"), number(shift.distance, ".3f")]
