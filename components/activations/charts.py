"""The charts of the Activations tab, from plain numbers (`views.py`). Pure."""

from bisect import bisect_left
from itertools import accumulate
from statistics import fmean

from ..i18n.language import gettext, lazy_gettext, number
from ..ui import figure, formatting
from ..ui.figure import Chart, Figure, Json
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
        "distance": lazy_gettext("distance, in standard deviations"),
    }
)
COLUMNS = Terms(  # of the data table, by field of `PlaceShift`
    {
        "error": lazy_gettext("error"),
        "massive_error": lazy_gettext("error (outlier tokens)"),
        "cosine": lazy_gettext("cosine"),
        "massive_cosine": lazy_gettext("cosine (outlier tokens)"),
        "distance": lazy_gettext("distance"),
    }
)
FORMATS = {"error": ".1%", "massive_error": ".1%", "cosine": ".3f", "massive_cosine": ".4f", "distance": ".3f"}


def shift_chart(view: ShiftView, selected: int = 0) -> Chart:
    """The residual stream's error, cosine and distribution distance by layer, one line per method."""
    residual = {method: shifts.places["residual"] for method, shifts in view.methods.items()}
    layers = len(next(iter(residual.values())))
    fig = Figure(3, f"shift-{layers}")
    fig.over_layers(layers, selected)
    for row, (measure, label) in enumerate(MEASURES.items(), start=1):
        for method, shifts in residual.items():
            name, line = METHODS[method], figure.line(METHOD_COLOURS[method], 2.4)
            values = [getattr(shift, measure) for shift in shifts]
            meta = figure.OVERLAY_ALWAYS
            fig.curve(row, name, values, name + " %{y}", line=line, legendgroup=method, meta=meta)
            if measure == "distance":
                continue
            # Outlier tokens have another scale: their lines are hidden until the reader turns them on in the legend.
            massive = gettext("{method}, outlier tokens", method=name)
            values = [getattr(shift, f"massive_{measure}") for shift in shifts]
            hidden: Json = {"legendgroup": f"{method}-massive", "visible": "legendonly"}
            fig.curve(row, massive, values, massive + " %{y}", line=line | {"width": 1.2}, **hidden)
        fig.y_axis(row, label, nticks=5)
    fig.y_axis(1, tickformat=".0%", rangemode="tozero")
    fig.y_axis(3, rangemode="tozero")
    return fig.chart(
        TITLES["shift"](selected),
        gettext(
            "Which method stays closer to the dense model? The residual stream after each layer, compared with "
            "the dense model's; {removed}. Closer means a lower error and distance and a higher cosine.",
            removed=removed(view),
        ),
        {gettext("Layer"): map(str, range(layers))}
        | {
            f"{METHODS[method]}: {label}": [figure.cell(getattr(shift, field), FORMATS[field]) for shift in shifts]
            for method, shifts in residual.items()
            for field, label in COLUMNS.items()
        },
    )


def histogram_chart(view: ShiftView, layer: int) -> Chart:
    """The distributions of the residual stream, the attention output and the MLP output of one layer."""
    fig = Figure(len(PLACES), f"histograms-{layer}", side_by_side=True)
    fig.layout["legend"]["y"] = 1.1  # above the panels' headings
    reference = next(iter(view.methods.values()))
    layer = min(layer, len(reference.dense["residual"]) - 1)
    rows: list[list[str]] = []
    for column, (place, label) in enumerate(PLACES.items(), start=1):
        dense = reference.dense[place][layer]
        _steps(fig, column, gettext("Dense"), dense, "dense")
        rows.append([label, gettext("Dense"), *_moments(dense), "–", "–", "–"])
        for method, method_shift in view.methods.items():
            shift = method_shift.places[place][layer]
            _steps(fig, column, METHODS[method], shift.histogram, METHOD_COLOURS[method])
            rows.append([label, METHODS[method], *_moments(shift.histogram), *_shift(shift)])
        fig.x_axis(column, gettext("value of a channel"), nticks=5, range=_middle(dense))
        fig.y_axis(column, gettext("density") if column == 1 else "", nticks=4, rangemode="tozero")
        fig.heading(column, f"<b>{label}</b>")
    moments = gettext("Mean"), gettext("Standard deviation"), gettext("Excess kurtosis")
    distances = gettext("Error"), gettext("Cosine"), gettext("Distance")
    return fig.chart(
        TITLES["histograms"](layer),
        gettext(
            "How does slicing change the values? Values of all channels, ordinary tokens only; {removed}. Shown: the "
            "middle 98% of the dense values.",
            removed=removed(view),
        ),
        ([gettext("Activation"), gettext("Model"), *moments, *distances], rows),
    )


def finding(view: ShiftView) -> str:
    """Each method's error averaged over the layers, as text."""
    means = {name: fmean(shift.error for shift in method.places["residual"]) for name, method in view.methods.items()}
    return ", ".join(gettext("{method} {mean:.0%}", method=METHODS[name], mean=mean) for name, mean in means.items())


def protocol(view: ShiftView) -> str:
    """The text and the settings of the measurement, as text."""
    massive = gettext("no outlier tokens")
    if view.massive:
        massive = gettext("{count} outlier tokens, measured separately", count=view.massive)
    measured_on = formatting.provenance(view.source) or gettext("Text: {text}.", text=view.text)
    return gettext(
        "Both methods are applied {in_order}. Error and cosine are medians over the ordinary tokens among {tokens:,} "
        "held-out tokens in windows of {window} ({massive}); the distance compares all values of the ordinary tokens. "
        "{measured_on}",
        in_order=gettext("in the one-shot order" if view.order == "one-shot" else "in the sequential order"),
        tokens=view.tokens,
        window=view.window,
        massive=massive,
        measured_on=measured_on,
    )


def removed(view: ShiftView) -> str:
    """The actual sparsity of each method, as text."""
    shares = gettext(" and ").join(
        gettext("{method} {share:.1%}", method=METHODS[name], share=method.removed)
        for name, method in view.methods.items()
    )
    return gettext("layer parameters removed: {shares}", shares=shares)


def _middle(histogram: Histogram) -> list[float]:
    """The value range that holds the middle 98 % of the distribution."""
    bins = len(histogram.density)
    width = (histogram.high - histogram.low) / bins
    cumulative = [total * width for total in accumulate(histogram.density)]
    first, last = bisect_left(cumulative, 0.01), bisect_left(cumulative, 0.99)
    return [figure.rounded(histogram.low + width * edge) for edge in (first, min(last, bins - 1) + 1)]


def _steps(fig: Figure, panel: int, name: str, histogram: Histogram, colour: str) -> None:
    """Add the density curve without the end bins, which count all values beyond the edges."""
    bins = len(histogram.density)
    width = (histogram.high - histogram.low) / bins
    x = [figure.rounded(histogram.low + (index + 0.5) * width) for index in range(1, bins - 1)]
    is_dense = colour == "dense"
    line = figure.line(colour, 1.4 if is_dense else 2) | {"shape": "hvh"}
    more: Json = {"fill": "tozeroy", "fillcolor": "@grid"} if is_dense else {"meta": figure.OVERLAY_ALWAYS}
    density = histogram.density[1:-1]
    fig.curve(panel, name, density, name + " %{y:.3~g}", x, line=line, legendgroup=name, **more)


def _moments(histogram: Histogram) -> list[str]:
    return [number(histogram.mean, ".3f"), number(histogram.spread, ".3f"), number(histogram.kurtosis, ",.1f")]


def _shift(shift: PlaceShift) -> list[str]:
    return [number(shift.error, ".1%"), number(shift.cosine, ".3f"), number(shift.distance, ".3f")]
