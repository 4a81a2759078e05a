"""The chart of a search: the ratios found so far, and the estimator's from which it started. Pure."""

from __future__ import annotations

from ..i18n.language import gettext, lazy_gettext, number, translate
from ..ratios.charts import add_bars, add_line
from ..ui.figure import Chart, Figure
from ..ui.labels import ESTIMATORS, MODULES
from .views import RatioSearchView

WAITING = lazy_gettext(
    "Do better ratios exist? Move parameters between modules of the sliced model, at equal size, and keep the moves "
    "that lower KL."
)


def search_chart(view: RatioSearchView | None, estimator: str, selected: int = 0) -> Chart:
    """Found ratios as bars, those of the estimator as a line; empty axes if there was no search."""
    found, start = (view.found, view.start) if view else ((), ())
    fig = Figure(2, f"search-{view is None}")
    fig.over_layers(len(found), selected)
    label = gettext("{estimator}, start", estimator=ESTIMATORS.get(estimator, estimator))
    for row, module in enumerate(MODULES, start=1):
        add_bars(fig, module, [ratios[row - 1] for ratios in found])
        add_line(fig, row, [ratios[row - 1] for ratios in start], estimator, label, legendgroup="start")
        fig.y_axis(row, rangemode="tozero")
    note = translate(WAITING)
    if view is None:
        fig.wait(gettext("The best ratios appear once the search has begun."))
    else:
        note = gettext(
            "Do better ratios exist? Bars: the ratios of the best allocation so far. Line: the estimator's plan for "
            "the same model size, from which the search started."
        )
    return fig.chart(
        gettext("Ratio search"),
        note,
        (
            [
                gettext("Layer"),
                *(gettext("{module}, planned ratio", module=name) for name in MODULES.values()),
                *(gettext("{module}, start", module=name) for name in MODULES.values()),
            ],
            [
                [str(layer), *(number(ratio, ".1%") for ratio in (*pair, *start[layer]))]
                for layer, pair in enumerate(found)
            ],
        ),
        hint=gettext("Click a layer.") if view else "",
        layers=len(found),
        selected=selected,
    )
