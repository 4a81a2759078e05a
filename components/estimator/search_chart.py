"""The chart of a search: the ratios found so far, and the estimator's from which it started. Pure."""

from __future__ import annotations

from ..i18n.language import gettext, lazy_gettext, number, translate
from ..ratios.charts import bars_of, line_of
from ..ui import figure
from ..ui.figure import Chart, Json
from ..ui.labels import ESTIMATORS, MODULES
from .views import RatioSearchView

WAITING = lazy_gettext(
    "Do better ratios exist? Move parameters between modules of the sliced model, at equal size, and keep the moves "
    "that lower KL."
)


def search_chart(view: RatioSearchView | None, estimator: str, selected: int = 0) -> Chart:
    """Found ratios as bars, those of the estimator as a line; empty axes if there was no search."""
    layout = figure.layout_of(2, revision=f"search-{view is None}")
    found, start = (view.found, view.start) if view else ((), ())
    layers, label = len(found), gettext("{estimator}, start", estimator=ESTIMATORS.get(estimator, estimator))
    data: list[Json] = []
    for row, (module, name) in enumerate(MODULES.items(), start=1):
        data.append(bars_of([ratios[row - 1] for ratios in found], module, figure.axes_of(row)))
        line = line_of([ratios[row - 1] for ratios in start], estimator, label, figure.axes_of(row))
        data.append({**line, "legendgroup": "start"})
        axis = layout[f"yaxis{figure.suffix(row)}"]
        axis.update(
            title=figure.title(gettext("{module}, planned ratio", module=name)), tickformat=".0%", rangemode="tozero"
        )
        if not view:
            axis.update(showticklabels=False, range=[0, 1])
    figure.layer_axes(layout, 2, layers)
    layout["xaxis2"]["showticklabels"], layout["bargap"] = view is not None, 0.28
    layout["shapes"] = [figure.band(selected)] if view else []
    note = translate(WAITING)
    if view:
        note = gettext(
            "Do better ratios exist? Bars: the ratios of the best allocation so far. Line: the estimator's plan for "
            "the same model size, from which the search started."
        )
    return Chart(
        title=gettext("Ratio search"),
        note=note,
        hint=gettext("Click a layer.") if view else "",
        data=data,
        layout=layout,
        columns=[
            gettext("Layer"),
            *(gettext("{module}, planned ratio", module=name) for name in MODULES.values()),
            *(gettext("{module}, start", module=name) for name in MODULES.values()),
        ],
        rows=[
            [str(layer), *(number(ratio, ".1%") for ratio in (*pair, *start[layer]))]
            for layer, pair in enumerate(found)
        ],
        layers=layers,
        selected=selected,
    )
