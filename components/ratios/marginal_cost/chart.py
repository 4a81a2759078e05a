"""The chart of marginal prices: measured and foretold, layer by layer. Pure."""

from __future__ import annotations

from collections.abc import Sequence

from components.i18n.language import gettext, lazy_gettext, number, translate
from components.ratios.prices.views import ModulePrice, PriceView
from components.ui import figure
from components.ui.figure import Chart, Json
from components.ui.labels import ESTIMATORS, LINE_OF, MODULES

WAITING = lazy_gettext(
    "Slice every module slightly more and slightly less, and measure what one parameter of it costs."
)


def price_chart(view: PriceView | None, estimator: str, selected: int = 0) -> Chart:
    """Price of a parameter over the median module's, measured and foretold; empty axes before it is measured."""
    layout = figure.layout_of(2, revision=f"prices-{view is None}")
    modules = view.modules if view else ()
    estimators = list(modules[0].predicted) if modules else []
    shown = [name for name in estimators if name == estimator] or estimators[:1]
    layers = 1 + max((price.layer for price in modules), default=-1)
    layout["hovermode"] = "closest"
    data: list[Json] = []
    for row, (module, name) in enumerate(MODULES.items(), start=1):
        axes = figure.axes_of(row)
        prices = [price for price in modules if price.module == module]
        data += [_predicted(prices, name, axes, row == 1) for name in shown]
        data.append(_measured(prices, module, axes))
        layout[f"yaxis{figure.suffix(row)}"].update(
            title=figure.title(gettext("{module}, times the median", module=name)), tickformat=".3~g"
        )
        if not view:
            layout[f"yaxis{figure.suffix(row)}"].update(showticklabels=False, range=[0, 2])
    reach = [-0.6, max(layers, 1) - 0.4]
    layout["xaxis2"].update(title=figure.title(gettext("layer")), range=reach, dtick=figure.step(layers))
    layout["xaxis"].update(range=reach, matches="x2", showticklabels=False)
    layout["shapes"] = [figure.band(selected), *(figure.level(row, 1.0) for row in (1, 2))] if view else []
    layout["xaxis2"]["showticklabels"] = view is not None
    note = translate(WAITING)
    if view:
        note = gettext(
            "What does one more parameter cost? Points: the KL from the dense model that removing one more "
            "parameter of this module adds, in multiples of the median module's; ± one standard error, on "
            "{measured_on}. Lines: what the estimator predicts ({estimators}). In the best plan of a given "
            "size all points have the same height: a module above it is pruned too much, a module below it too "
            "little.",
            measured_on=view.measured_on,
            estimators=gettext(" and ").join(ESTIMATORS[name] for name in shown),
        )
    return Chart(
        title=gettext("Marginal cost per parameter"),
        note=note,
        hint=gettext("Click a layer.") if view else "",
        data=data,
        layout=layout,
        columns=[
            *(gettext("Layer"), gettext("Module"), gettext("Removed"), gettext("Measured"), gettext("± error")),
            *(ESTIMATORS[name] for name in estimators),
        ],
        rows=[
            [
                str(price.layer),
                MODULES[price.module],
                number(price.ratio, ".0%"),
                number(price.times, ".2f"),
                number(price.error, ".2f"),
                *(number(price.predicted[name], ".2f") for name in estimators),
            ]
            for price in modules
        ],
        layers=layers,
        selected=selected,
    )


def _measured(prices: Sequence[ModulePrice], module: str, axes: Json) -> Json:
    return {
        "type": "scatter",
        "mode": "markers",
        "name": gettext("{module}, measured", module=MODULES[module]),
        "meta": figure.ALWAYS,
        "x": [price.layer for price in prices],
        "y": [figure.rounded(price.times) for price in prices],
        "error_y": {
            "type": "data",
            "array": [figure.rounded(price.error) for price in prices],
            "color": f"@{module}",
            "thickness": 0.8,
            "width": 0,
        },
        "customdata": [gettext("{share:.0%} removed", share=price.ratio) for price in prices],
        "hovertemplate": gettext("<b>layer %{{x}}, {module}</b><br>%{{y:.2f}} times the median", module=MODULES[module])
        + "<br>%{customdata}<extra></extra>",
        "marker": {"color": f"@{module}", "size": 8},
        "showlegend": False,
        **axes,
    }


def _predicted(prices: Sequence[ModulePrice], estimator: str, axes: Json, legend: bool) -> Json:
    name = gettext("{estimator}, predicted", estimator=ESTIMATORS[estimator])
    return {
        "type": "scatter",
        "mode": "lines",
        "name": name,
        "legendgroup": estimator,
        "showlegend": legend,
        "meta": figure.ALWAYS,
        "x": [price.layer for price in prices],
        "y": [figure.rounded(price.predicted[estimator]) for price in prices],
        "line": figure.line(LINE_OF.get(estimator, "other"), 1.6),
        "hovertemplate": gettext("{name} %{{y:.2f}} times the median", name=name) + "<extra></extra>",
        **axes,
    }
