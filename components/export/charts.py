"""The charts of a published page: those of the tabs, with marks of the slider's position. Pure."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

from ..activations.charts import MEASURES, TITLES, shift_chart
from ..activations.views import ShiftView
from ..i18n.language import gettext, lazy_gettext, percentage, translate
from ..ratios.charts import ratio_chart
from ..spectra.charts import variance_chart
from ..sweep.charts import removed_chart
from ..ui import figure
from ..ui.figure import Chart
from .views import Published, Step

NOTHING_REMOVED = lazy_gettext("Nothing is removed, so nothing shifts.")


def charts(published: Published, step: Step, axis_limits: Sequence[float]) -> dict[str, Chart]:
    """A step's charts by their place on the page, except the spectra; `axis_limits` as `shift_axis_limits` returns."""
    step_charts = {"ratios": ratio_chart(step.plan), "sweep": sweep(published, step)}
    return step_charts | {
        "shift": shift(step.shift, axis_limits)
        if step.shift
        else figure.waiting(TITLES["shift"](0), translate(NOTHING_REMOVED))
    }


def spectra(step: Step) -> list[Chart]:
    """A step's spectra, one chart per layer."""
    return [variance_chart(view) for view in step.spectra]


def shift(view: ShiftView, axis_limits: Sequence[float]) -> Chart:
    """The shift with fixed axes, so that the steps of the slider can be compared."""
    chart = shift_chart(view)
    error, cosine, distance = axis_limits
    ranges = {"yaxis": [0, error], "yaxis2": [cosine, 1], "yaxis3": [0, distance]}
    axes = {name: {**chart.layout[name], "range": limits} for name, limits in ranges.items()}
    return replace(chart, layout=chart.layout | axes)


def shift_axis_limits(steps: Sequence[Step]) -> list[float]:
    """Axis limits of the shift chart that fit all steps: largest error, lowest cosine, largest distance."""
    views = [step.shift for step in steps if step.shift]
    limits = []
    for measure in MEASURES:
        values = [
            getattr(shift, measure)
            for view in views
            for method in view.methods.values()
            for shift in method.places["residual"]
        ]
        values = [value for value in values if math.isfinite(value)]
        limit = 1 - 1.05 * (1 - min(values, default=0.0)) if measure == "cosine" else 1.05 * max(values, default=1.0)
        limits.append(figure.rounded(limit))
    return limits


def sweep(published: Published, step: Step) -> Chart:
    """The perplexities of all steps, with a vertical line at the slider's position."""
    chart = removed_chart(published.sweep)
    removed = figure.rounded(step.plan.removed)
    marker = figure.upright(1, removed, {"color": "@ink", "width": 1.4, "dash": "5px,3px"})
    place = ("x", removed), ("y domain", 1)
    label = figure.annotation(percentage(step.percent), *place, ("left", "top"), "@quiet", 12)
    layout = chart.layout | {
        "shapes": [*chart.layout["shapes"], marker],
        "annotations": [*chart.layout["annotations"], label],
    }
    points = len(published.sweep.points)
    note = gettext("{points} sliced models; the vertical line marks the slider's setting.", points=points)
    return replace(
        chart, layout=layout, note=note, hint=gettext("Click a point to move the slider there."), protocol=""
    )
