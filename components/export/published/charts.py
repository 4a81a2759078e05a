"""A published page's charts: the page's own, and what shows the slider on them. Pure."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

from components.activations.charts import MEASURES, QUESTIONS, shift_chart
from components.activations.views import ShiftView
from components.export.published.views import Published, Step
from components.i18n.language import gettext, lazy_gettext, number, translate
from components.ratios.charts import ratio_chart
from components.spectra.charts import variance_chart
from components.sweep.charts import removed_chart
from components.ui import figure
from components.ui.figure import Chart

UNMOVED = lazy_gettext("Nothing is removed, so nothing shifts.")


def charts(published: Published, step: Step, tops: Sequence[float]) -> dict[str, Chart]:
    """A step's charts by the name of their place on the page; `tops` of the shift's axes. The spectra are apart."""
    found = {"ratios": ratio_chart(step.plan), "sweep": sweep(published, step)}
    return found | {
        "shift": shift(step.shift, tops) if step.shift else figure.waiting(QUESTIONS["shift"](0), translate(UNMOVED))
    }


def spectra(step: Step) -> list[Chart]:
    """A layer each."""
    return [variance_chart(view) for view in step.spectra]


def shift(view: ShiftView, tops: Sequence[float]) -> Chart:
    """With axes that stay when the slider moves: what grows can be seen to grow."""
    chart = shift_chart(view)
    error, cosine, distance = tops
    ranges = {"yaxis": [0, error], "yaxis2": [cosine, 1], "yaxis3": [0, distance]}
    axes = {name: {**chart.layout[name], "range": ends} for name, ends in ranges.items()}
    return replace(chart, layout=chart.layout | axes)


def shift_tops(steps: Sequence[Step]) -> list[float]:
    """Where the shift's axes end, so that every step's lines have room: an error, the lowest cosine, a distance."""
    views = [step.shift for step in steps if step.shift]
    ends = []
    for measure in MEASURES:
        found = [
            getattr(shift, measure)
            for view in views
            for method in view.methods.values()
            for shift in method.places["residual"]
        ]
        found = [value for value in found if math.isfinite(value)]
        end = 1 - 1.05 * (1 - min(found, default=0.0)) if measure == "cosine" else 1.05 * max(found, default=1.0)
        ends.append(figure.rounded(end))
    return ends


def sweep(published: Published, step: Step) -> Chart:
    """All steps' perplexities, and an upright line where the slider stands."""
    chart = removed_chart(published.sweep)
    at = figure.rounded(step.plan.removed)
    line = {"color": "@ink", "width": 1.4, "dash": "5px,3px"}
    marker = {"type": "line", "xref": "x", "yref": "y domain", "x0": at, "x1": at, "y0": 0, "y1": 1, "line": line}
    words = figure.label(1, at, 1, f"{number(step.percent, 'g')} %")
    words |= {"xref": "x", "yref": "y domain", "xanchor": "left", "yanchor": "top"}
    layout = chart.layout | {
        "shapes": [*chart.layout["shapes"], marker],
        "annotations": [*chart.layout["annotations"], words],
    }
    points = len(published.sweep.points)
    note = gettext("{points} sliced models; the vertical line marks the slider's setting.", points=points)
    return replace(
        chart, layout=layout, note=note, hint=gettext("Click a point to move the slider there."), protocol=""
    )
