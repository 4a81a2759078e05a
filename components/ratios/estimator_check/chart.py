"""The chart of the *Estimator check*: predicted against measured damage, one point per module. Pure."""

from __future__ import annotations

import math
from collections.abc import Sequence

from ...i18n.language import gettext, number
from ...state import choices
from ...ui import figure, formatting
from ...ui.figure import Chart, Json
from ...ui.labels import ESTIMATORS, MODULES
from .views import EstimatorCheckView, ModuleCheck


def estimator_check_chart(view: EstimatorCheckView | None, estimator: str, selected: int = 0) -> Chart:
    """KL from the dense model with each module sliced alone, over the predicted damage; empty axes if not measured.

    Uniform ratios predict nothing; the chart then shows the first estimator that predicts.
    """
    estimator = shown_estimator(view, estimator)
    layout = figure.layout_of(2, revision=f"estimator-check-{view is None}", vertical=False)
    layout |= {"hovermode": "closest", "showlegend": False, "annotations": [], "shapes": []}
    data = []
    for column, (module, name) in enumerate(MODULES.items(), start=1):
        axes = figure.axes_of(column)
        checks = [check for check in view.modules if check.module == module] if view else []
        predicted = [check.predicted[estimator] for check in checks]
        data.append(_points(checks, module, estimator, axes))
        layout[f"xaxis{figure.suffix(column)}"].update(
            title=figure.title(gettext("predicted: importance of the removed units")), exponentformat="power", nticks=6
        )
        layout[f"yaxis{figure.suffix(column)}"].update(
            title=figure.title(gettext("measured: KL from dense, nats per token") if column == 1 else ""),
            tickformat=".3~f",
            zeroline=True,
            zerolinecolor="@rule",
        )
        if view is None:
            for axis in "xy":
                layout[f"{axis}axis{figure.suffix(column)}"].update(showticklabels=False, range=[0, 1])
        if any(importance > 0 for importance in predicted):
            layout[f"xaxis{figure.suffix(column)}"].update(type="log", **_ticks(predicted))
        layout["annotations"].append(figure.heading(f"<b>{name}</b>: {_rho(view, estimator, module)}", axes))
    note = gettext("Slice each module alone, measure the damage, and compare it with what the importances predict.")
    if view:
        note = gettext(
            "Was the estimator right? Each point: {ratio:.0%} of one module removed, all other modules dense. "
            "Height: KL(dense ‖ sliced) of the next-token probabilities, on {measured_on}, ± one standard error. "
            "Horizontal: what {estimator} predicts. ρ: Spearman's rank correlation.",
            ratio=view.ratio,
            measured_on=view.measured_on,
            estimator=ESTIMATORS[estimator],
        )
    layers = 1 + max((check.layer for check in view.modules), default=-1) if view else 0
    return Chart(
        title=gettext("Estimator check: predicted against measured damage"),
        note=note,
        hint=gettext("Click a point.") if view else "",
        protocol=formatting.provenance(view.source) if view else "",
        data=data,
        layout=layout,
        columns=[
            gettext("Layer"),
            gettext("Module"),
            gettext("KL from dense"),
            gettext("± std. error"),
            gettext("Rank"),
            gettext("Predicted rank, {estimator}", estimator=ESTIMATORS[estimator]),
        ],
        rows=[
            [
                str(check.layer),
                MODULES[check.module],
                number(check.damage, ".5f"),
                number(check.error, ".5f"),
                str(check.rank),
                str(check.predicted_ranks[estimator]),
            ]
            for check in (view.modules if view else ())
        ],
        layers=layers,
        selected=selected,
        side_by_side=True,
    )


def shown_estimator(view: EstimatorCheckView | None, estimator: str) -> str:
    """The estimator whose prediction is shown: the chosen one if it predicts anything, else the first that does."""
    predicting = list(view.rho) if view else [name for name, entry in choices.ESTIMATORS.items() if entry.importance]
    return estimator if estimator in predicting else predicting[0]


def _points(checks: Sequence[ModuleCheck], module: str, estimator: str, axes: Json) -> Json:
    return {
        "type": "scatter",
        "mode": "markers",
        "name": MODULES[module],
        "meta": {"module": module, **figure.GHOST_IF_DIFFERENT},  # `assets/lesson/answers.js` reads the module
        "x": [figure.rounded(check.predicted[estimator]) for check in checks],
        "y": [figure.rounded(check.damage) for check in checks],
        "error_y": figure.error_bars(module, [check.error for check in checks]),
        "customdata": [check.layer for check in checks],
        "text": [
            gettext(
                "measured rank {measured} of {of}, predicted rank {predicted}",
                measured=check.rank,
                of=len(checks),
                predicted=check.predicted_ranks[estimator],
            )
            for check in checks
        ],
        "hovertemplate": gettext(
            "<b>layer %{{customdata}}, {module}</b><br>%{{y:+.4f}} nats per token", module=MODULES[module]
        )
        + "<br>%{text}<extra></extra>",
        "marker": {"color": f"@{module}", "size": 8},
        "selected": {"marker": {"size": 15, "opacity": 1}},
        "unselected": {"marker": {"opacity": 0.6}},
        **axes,
    }


def _ticks(values: Sequence[float]) -> Json:
    # plotly labels the ticks between powers of ten with a digit only, such as 2 for 0.0002
    top = max(values)
    exponents = range(math.floor(math.log10(max(min(values), 1e-6 * top))), math.ceil(math.log10(top)) + 1)
    marks = [digit * 10.0**exponent for exponent in exponents for digit in (1, 2, 5)]
    return {"tickvals": marks, "ticktext": [number(mark, ".10f").rstrip("0").rstrip(".,") for mark in marks]}


def _rho(view: EstimatorCheckView | None, estimator: str, module: str) -> str:
    if view is None:
        return gettext("not measured yet")
    return gettext(
        "ρ {rho}, noise ceiling {best}",
        rho=format_rho(view.rho[estimator][module]),
        best=format_rho(view.ceiling[module]),
    )


def format_rho(rho: float | None) -> str:
    """Rho with two digits, or a dash for None."""
    return "–" if rho is None else number(rho, ".2f")
