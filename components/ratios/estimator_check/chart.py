"""The chart under *Was it right?*: measured against foretold, a point a module. Pure."""

from __future__ import annotations

import math
from collections.abc import Sequence

from components.i18n.language import gettext, number
from components.ratios.estimator_check.views import ModuleVerdict, VerdictView
from components.state import choices
from components.ui import figure
from components.ui.figure import Chart, Json
from components.ui.labels import ESTIMATORS, MODULES


def verdict_chart(view: VerdictView | None, estimator: str, selected: int = 0) -> Chart:
    """KL from the dense model with each module sliced alone, over what was foretold; empty axes before it is measured.

    Uniform ratios foretell nothing, so the first estimator that does is shown for them.
    """
    estimator = judged(view, estimator)
    layout = figure.layout_of(2, revision=f"verdict-{view is None}", vertical=False)
    layout["hovermode"], layout["showlegend"] = "closest", False
    layout["annotations"], layout["shapes"] = [], []
    data = []
    for column, (module, name) in enumerate(MODULES.items(), start=1):
        axes = figure.axes_of(column)
        verdicts = [verdict for verdict in view.modules if verdict.module == module] if view else []
        predicted = [verdict.predicted[estimator] for verdict in verdicts]
        data.append(_points(verdicts, module, estimator, axes))
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
            "Height: KL divergence of the next-token probabilities from the dense model's, on {measured_on}, ± "
            "one standard error. Horizontal: what {estimator} predicts. ρ: Spearman's rank correlation.",
            ratio=view.ratio,
            measured_on=view.measured_on,
            estimator=ESTIMATORS[estimator],
        )
    layers = 1 + max((verdict.layer for verdict in view.modules), default=-1) if view else 0
    return Chart(
        title=gettext("Estimator check: predicted against measured damage"),
        note=note,
        hint=gettext("Click a point.") if view else "",
        data=data,
        layout=layout,
        columns=[
            gettext("Layer"),
            gettext("Module"),
            gettext("KL from dense"),
            gettext("± error"),
            gettext("Rank"),
            gettext("Predicted rank, {estimator}", estimator=ESTIMATORS[estimator]),
        ],
        rows=[
            [
                str(verdict.layer),
                MODULES[verdict.module],
                number(verdict.damage, ".5f"),
                number(verdict.error, ".5f"),
                str(verdict.place),
                str(verdict.places[estimator]),
            ]
            for verdict in (view.modules if view else ())
        ],
        layers=layers,
        selected=selected,
        beside=True,
    )


def judged(view: VerdictView | None, estimator: str) -> str:
    """The estimator whose foretelling is shown: the chosen one if it foretells anything, else the first that does."""
    foretelling = list(view.rho) if view else [name for name, entry in choices.ESTIMATORS.items() if entry.importance]
    return estimator if estimator in foretelling else foretelling[0]


def _points(verdicts: Sequence[ModuleVerdict], module: str, estimator: str, axes: Json) -> Json:
    return {
        "type": "scatter",
        "mode": "markers",
        "name": MODULES[module],
        "meta": {"module": module, **figure.DIFFERENT},  # `assets/lesson/answers.js` asks for the module
        "x": [figure.rounded(verdict.predicted[estimator]) for verdict in verdicts],
        "y": [figure.rounded(verdict.damage) for verdict in verdicts],
        "error_y": {
            "type": "data",
            "array": [figure.rounded(verdict.error) for verdict in verdicts],
            "color": f"@{module}",
            "thickness": 0.8,
            "width": 0,
        },
        "customdata": [verdict.layer for verdict in verdicts],
        "text": [
            gettext(
                "measured rank {measured} of {of}, predicted rank {predicted}",
                measured=verdict.place,
                of=len(verdicts),
                predicted=verdict.places[estimator],
            )
            for verdict in verdicts
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
    # plotly writes 2 and 5 between powers of ten as lone digits, which nobody reads as 0.0002
    top = max(values)
    exponents = range(math.floor(math.log10(max(min(values), 1e-6 * top))), math.ceil(math.log10(top)) + 1)
    marks = [digit * 10.0**exponent for exponent in exponents for digit in (1, 2, 5)]
    return {"tickvals": marks, "ticktext": [number(mark, ".10f").rstrip("0").rstrip(".,") for mark in marks]}


def _rho(view: VerdictView | None, estimator: str, module: str) -> str:
    if view is None:
        return gettext("not measured yet")
    return gettext(
        "ρ {rho}, at best {best}", rho=digits(view.rho[estimator][module]), best=digits(view.ceiling[module])
    )


def digits(rho: float | None) -> str:
    """Two of them, or a dash where there is none."""
    return "–" if rho is None else number(rho, ".2f")
