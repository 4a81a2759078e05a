"""The chart of marginal costs, measured and predicted, by layer. Pure."""

from __future__ import annotations

from collections.abc import Sequence

from ...i18n.language import gettext, lazy_gettext, number, translate
from ...ui import figure
from ...ui.figure import Chart, Json
from ...ui.labels import ESTIMATOR_COLOURS, ESTIMATORS, MODULES
from .views import MarginalCostView, ModuleCost

WAITING = lazy_gettext(
    "Prune one module at a time, once by about 10 percentage points more and once by about 10 less, and measure what "
    "removing one more of its parameters costs."
)


def marginal_cost_chart(view: MarginalCostView | None, estimator: str, selected: int = 0) -> Chart:
    """Marginal cost per parameter in multiples of the median; empty axes if nothing is measured."""
    layout = figure.layout_of(2, revision=f"marginal-cost-{view is None}")
    modules = view.modules if view else ()
    estimators = list(modules[0].predicted) if modules else []
    shown = [name for name in estimators if name == estimator] or estimators[:1]
    layers = 1 + max((cost.layer for cost in modules), default=-1)
    layout["hovermode"] = "closest"
    data: list[Json] = []
    for row, (module, name) in enumerate(MODULES.items(), start=1):
        axes = figure.axes_of(row)
        costs = [cost for cost in modules if cost.module == module]
        data += [_predicted(costs, estimator_name, axes, row == 1) for estimator_name in shown]
        data.append(_measured(costs, module, axes))
        layout[f"yaxis{figure.suffix(row)}"].update(
            title=figure.title(gettext("{module}, × median", module=name)), tickformat=".3~g"
        )
        if not view:
            layout[f"yaxis{figure.suffix(row)}"].update(showticklabels=False, range=[0, 2])
    figure.layer_axes(layout, 2, layers)
    layout["shapes"] = [figure.band(selected), *(figure.level(row, 1.0) for row in (1, 2))] if view else []
    layout["xaxis2"]["showticklabels"] = view is not None
    note = translate(WAITING)
    if view:
        note = gettext(
            "What does removing one more parameter cost? Points: how much removing one more parameter of a "
            "module increases the KL from the dense model, in multiples of the median module's increase; ± one "
            "standard error, on {measured_on}. Lines: what the estimator predicts ({estimators}). In the best plan of "
            "a given size all points have the same height, except those of modules that are unpruned, at the cap or "
            "locked. A module with a higher point is pruned too much, one with a lower point too little.",
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
            *(gettext("Layer"), gettext("Module"), gettext("Removed"), gettext("Measured"), gettext("± std. error")),
            *(ESTIMATORS[name] for name in estimators),
        ],
        rows=[
            [
                str(cost.layer),
                MODULES[cost.module],
                number(cost.ratio, ".0%"),
                number(cost.cost, ".2f"),
                number(cost.error, ".2f"),
                *(number(cost.predicted[name], ".2f") for name in estimators),
            ]
            for cost in modules
        ],
        layers=layers,
        selected=selected,
    )


def _measured(costs: Sequence[ModuleCost], module: str, axes: Json) -> Json:
    return {
        "type": "scatter",
        "mode": "markers",
        "name": gettext("{module}, measured", module=MODULES[module]),
        "meta": figure.GHOST_ALWAYS,
        "x": [cost.layer for cost in costs],
        "y": [figure.rounded(cost.cost) for cost in costs],
        "error_y": figure.error_bars(module, [cost.error for cost in costs]),
        "customdata": [gettext("{share:.0%} removed", share=cost.ratio) for cost in costs],
        "hovertemplate": gettext("<b>layer %{{x}}, {module}</b><br>%{{y:.2f}} times the median", module=MODULES[module])
        + "<br>%{customdata}<extra></extra>",
        "marker": {"color": f"@{module}", "size": 8},
        "showlegend": False,
        **axes,
    }


def _predicted(costs: Sequence[ModuleCost], estimator: str, axes: Json, legend: bool) -> Json:
    name = gettext("{estimator}, predicted", estimator=ESTIMATORS[estimator])
    return {
        "type": "scatter",
        "mode": "lines",
        "name": name,
        "legendgroup": estimator,
        "showlegend": legend,
        "meta": figure.GHOST_ALWAYS,
        "x": [cost.layer for cost in costs],
        "y": [figure.rounded(cost.predicted[estimator]) for cost in costs],
        "line": figure.line(ESTIMATOR_COLOURS.get(estimator, "other"), 1.6),
        "hovertemplate": gettext("{name} %{{y:.2f}} times the median", name=name) + "<extra></extra>",
        **axes,
    }
