"""The chart of the *Estimator check*: predicted against measured damage, one point per module. Pure."""

from __future__ import annotations

import math
from collections.abc import Sequence

from ..i18n.language import gettext, number
from ..state import choices
from ..ui import figure, formatting
from ..ui.figure import Chart, Figure, Json
from ..ui.labels import ESTIMATORS, MODULES
from .views import EstimatorCheckView, ModuleCheck


def estimator_check_chart(view: EstimatorCheckView | None, estimator: str, selected: int = 0) -> Chart:
    """KL from the dense model with each module sliced alone, over the predicted damage; empty axes if not measured.

    Uniform ratios predict nothing; the chart then shows the first estimator that predicts.
    """
    estimator, checks = shown_estimator(view, estimator), view.modules if view else ()
    fig = Figure(2, f"estimator-check-{view is None}", side_by_side=True, hovermode="closest")
    fig.layout["showlegend"] = False
    for column, (module, name) in enumerate(MODULES.items(), start=1):
        fig.x_axis(column, gettext("predicted: importance of the removed units"), exponentformat="power", nticks=6)
        title = gettext("measured: KL from dense, nats per token") if column == 1 else ""
        fig.y_axis(column, title, tickformat=".3~f", zeroline=True, zerolinecolor="@rule")
        _points(fig, column, [check for check in checks if check.module == module], estimator)
        fig.heading(column, f"<b>{name}</b>: {_rho(view, estimator, module)}")
    if view is None:
        fig.wait(gettext("A point for each module appears once it is measured."))
        note = gettext("Slice each module alone, measure the damage, and compare it with what the importances predict.")
    else:
        note = gettext(
            "Was the estimator right? Each point: {ratio:.0%} of one module removed, all other modules dense. "
            "Height: KL(dense ‖ sliced) of the next-token probabilities, on {measured_on}, ± one standard error. "
            "Horizontal: what {estimator} predicts. ρ: Spearman's rank correlation.",
            ratio=view.ratio,
            measured_on=view.measured_on,
            estimator=ESTIMATORS[estimator],
        )
    predicted_rank = gettext("Predicted rank, {estimator}", estimator=ESTIMATORS[estimator])
    return fig.chart(
        gettext("Estimator check: predicted against measured damage"),
        note,
        figure.table(
            {
                gettext("Layer"): [str(check.layer) for check in checks],
                gettext("Module"): [MODULES[check.module] for check in checks],
                gettext("KL from dense"): [number(check.damage, ".5f") for check in checks],
                gettext("± std. error"): [number(check.error, ".5f") for check in checks],
                gettext("Rank"): [str(check.rank) for check in checks],
                predicted_rank: [str(check.predicted_ranks[estimator]) for check in checks],
            }
        ),
        hint=gettext("Click a point.") if view else "",
        protocol=formatting.provenance(view.source) if view else "",
        layers=1 + max((check.layer for check in checks), default=-1),
        selected=selected,
    )


def shown_estimator(view: EstimatorCheckView | None, estimator: str) -> str:
    """The estimator whose prediction is shown: the chosen one if it predicts anything, else the first that does."""
    predicting = list(view.rho) if view else [name for name, entry in choices.ESTIMATORS.items() if entry.importance]
    return estimator if estimator in predicting else predicting[0]


def _points(fig: Figure, column: int, checks: Sequence[ModuleCheck], estimator: str) -> None:
    """Add a panel's points, and a logarithmic axis if anything is predicted."""
    module = list(MODULES)[column - 1]
    predicted = [check.predicted[estimator] for check in checks]
    ranks = [
        gettext(
            "measured rank {measured} of {of}, predicted rank {predicted}",
            measured=check.rank,
            of=len(checks),
            predicted=check.predicted_ranks[estimator],
        )
        for check in checks
    ]
    hover = gettext("<b>layer %{{customdata}}, {module}</b><br>%{{y:+.4f}} nats per token", module=MODULES[module])
    fig.curve(
        column,
        MODULES[module],
        [check.damage for check in checks],
        hover + "<br>%{text}",
        [figure.rounded(importance) for importance in predicted],
        mode="markers",
        meta={"module": module, **figure.OVERLAY_IF_DIFFERENT},  # `assets/lesson/answers.js` reads the module
        error_y=figure.error_bars(module, [check.error for check in checks]),
        customdata=[check.layer for check in checks],
        text=ranks,
        marker={"color": f"@{module}", "size": 8},
        selected={"marker": {"size": 15, "opacity": 1}},
        unselected={"marker": {"opacity": 0.6}},
    )
    if any(importance > 0 for importance in predicted):
        fig.x_axis(column, type="log", **_ticks(predicted))


def _ticks(values: Sequence[float]) -> Json:
    # plotly labels the ticks between powers of ten with a digit only, such as 2 for 0.0002
    top = max(values)
    exponents = range(math.floor(math.log10(max(min(values), 1e-6 * top))), math.ceil(math.log10(top)) + 1)
    marks = [digit * 10.0**exponent for exponent in exponents for digit in (1, 2, 5)]
    return {"tickvals": marks, "ticktext": [number(mark, ".10f").rstrip("0").rstrip(".,") for mark in marks]}


def _rho(view: EstimatorCheckView | None, estimator: str, module: str) -> str:
    if view is None:
        return gettext("not measured yet")
    rho, best = view.rho[estimator][module], view.ceiling[module]
    return gettext(
        "ρ {rho}, at most {best} with this noise", rho=figure.cell(rho, ".2f"), best=figure.cell(best, ".2f")
    )
