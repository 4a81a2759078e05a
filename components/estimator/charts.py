"""The charts of the Estimator tab, and summaries of them: estimator check, ratio search, convergence. Pure."""

import math
from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

from ..i18n.language import gettext, lazy_gettext, number, translate
from ..ratios.charts import add_bars, add_line
from ..state import choices
from ..state.views import ConvergenceView, Provenance
from ..ui import figure, formatting
from ..ui.figure import Chart, Figure, Json
from ..ui.labels import ESTIMATORS, MODULES, MODULES_IN_WORDS
from .views import EstimatorCheckView, Misjudged, RatioSearchView, SearchResult

NO_SEARCH = lazy_gettext(
    "Do better ratios exist? Move parameters between modules of the sliced model, at equal size, and keep the moves "
    "that lower KL."
)
CONVERGENCE = lazy_gettext("Convergence with calibration size")
NO_CONVERGENCE = lazy_gettext("How the ratios change with more text appears once two sequences are calibrated.")
TOLERANCE = 0.02  # fraction of a module; a ratio that changes by less has converged
LINES = {
    "attention": (lazy_gettext("Attention, mean over layers"), figure.line("attention", 2.4)),
    "mlp": (lazy_gettext("MLP, mean over layers"), figure.line("mlp", 2.4)),
    "largest": (lazy_gettext("Module with the largest change"), figure.line("dense", 1.4)),
}


def estimator_check_chart(view: EstimatorCheckView | None, estimator: str, selected: int = 0) -> Chart:
    """KL from the dense model with each module sliced alone, over what `shown_estimator` predicts; None: empty axes."""
    estimator = shown_estimator(view, estimator)
    checks = view.agreement.modules.to_dict("records") if view else []
    fig = Figure(2, f"estimator-check-{view is None}", side_by_side=True, hovermode="closest")
    fig.layout["showlegend"] = False
    for column, (module, name) in enumerate(MODULES.items(), start=1):
        fig.x_axis(column, gettext("predicted: importance of the removed units"), exponentformat="power", nticks=6)
        title = gettext("measured: KL from dense, nats per token") if column == 1 else ""
        fig.y_axis(column, title, tickformat=".3~f", zeroline=True, zerolinecolor="@rule")
        _points(fig, column, [check for check in checks if check["module"] == module], estimator)
        fig.heading(column, f"<b>{name}</b>: {_rho(view, estimator, module)}")
    if view is None:
        fig.wait(gettext("A point for each module appears once it is measured."))
        note = gettext("Slice each module alone, measure the damage, and compare it with what the importances predict.")
    else:
        note = gettext(
            "Was the estimator right? Each point: {ratio:.0%} of one module removed, all other modules dense. "
            "Height: KL(dense ‖ sliced) of the next-token probabilities, on {measured_on}, ± one standard error. "
            "Horizontal: what {estimator} predicts. ρ: Spearman's rank correlation, 1 if all ranks are predicted.",
            ratio=view.ratio,
            measured_on=view.measured_on,
            estimator=ESTIMATORS[estimator],
        )
    predicted_rank = gettext("Predicted rank, {estimator}", estimator=ESTIMATORS[estimator])
    return fig.chart(
        gettext("Estimator check: predicted against measured damage"),
        note,
        {
            gettext("Layer"): [str(check["layer"]) for check in checks],
            gettext("Module"): [MODULES[check["module"]] for check in checks],
            gettext("KL from dense"): [number(check["damage"], ".5f") for check in checks],
            gettext("± std. error"): [number(check["standard_error"] or 0.0, ".5f") for check in checks],
            gettext("Rank"): [str(check["place"]) for check in checks],
            predicted_rank: [str(check[f"place_{estimator}"]) for check in checks],
        },
        hint=gettext("Click a point.") if view else "",
        protocol=formatting.provenance(view.source) if view else "",
        layers=1 + max((check["layer"] for check in checks), default=-1),
        selected=selected,
    )


def shown_estimator(view: EstimatorCheckView | None, estimator: str) -> str:
    """The estimator whose prediction is shown: the chosen one if it predicts anything, else the first that does."""
    predicting = (
        list(view.agreement.rho) if view else [name for name, entry in choices.ESTIMATORS.items() if entry.importance]
    )
    return estimator if estimator in predicting else predicting[0]


def _points(fig: Figure, column: int, checks: Sequence[Json], estimator: str) -> None:
    """Add a panel's points, and a logarithmic axis if anything is predicted."""
    module = list(MODULES)[column - 1]
    predicted = [check[estimator] for check in checks]
    ranks = [
        gettext(
            "measured rank {measured} of {of}, predicted rank {predicted}",
            measured=check["place"],
            of=len(checks),
            predicted=check[f"place_{estimator}"],
        )
        for check in checks
    ]
    hover = gettext("<b>layer %{{customdata}}, {module}</b><br>%{{y:+.4f}} nats per token", module=MODULES[module])
    fig.curve(
        column,
        MODULES[module],
        [check["damage"] for check in checks],
        hover + "<br>%{text}",
        [figure.rounded(importance) for importance in predicted],
        mode="markers",
        meta={"module": module, **figure.OVERLAY_IF_DIFFERENT},  # `assets/lesson/answers.js` reads the module
        error_y=figure.error_bars(module, [check["standard_error"] or 0.0 for check in checks]),
        customdata=[check["layer"] for check in checks],
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
    rho, best = view.agreement.rho[estimator][module], view.agreement.ceiling[module]
    return gettext(
        "ρ {rho}, at most {best} with this noise", rho=figure.cell(rho, ".2f"), best=figure.cell(best, ".2f")
    )


def search_chart(view: RatioSearchView | None, estimator: str, selected: int = 0) -> Chart:
    """Found ratios as bars, those of the estimator as a line; empty axes if there was no search."""
    found: Mapping[Any, float] = view.found.ratios if view else {}
    start: Mapping[Any, float] = view.start if view else {}
    layers = range(len(found) // len(MODULES))
    fig = Figure(2, f"search-{view is None}")
    fig.over_layers(len(layers), selected)
    label = gettext("{estimator}, start", estimator=ESTIMATORS.get(estimator, estimator))
    for row, module in enumerate(MODULES, start=1):
        add_bars(fig, module, [found[layer, module] for layer in layers])
        add_line(fig, row, [start[layer, module] for layer in layers], estimator, label, legendgroup="start")
        fig.y_axis(row, rangemode="tozero")
    note = translate(NO_SEARCH)
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
        {
            gettext("Layer"): map(str, layers),
            **{
                gettext("{module}, planned ratio", module=name): [
                    number(found[layer, module], ".1%") for layer in layers
                ]
                for module, name in MODULES.items()
            },
            **{
                gettext("{module}, start", module=name): [number(start[layer, module], ".1%") for layer in layers]
                for module, name in MODULES.items()
            },
        },
    )


def convergence_chart(view: ConvergenceView | None) -> Chart:
    """Difference of the ratios to the latest ones, over the number of sequences that they were estimated from."""
    if view is None:
        return figure.waiting(translate(CONVERGENCE), translate(NO_CONVERGENCE))
    *sequences, latest = view.sequences  # the last entry is the latest estimate itself
    counts, total = [str(count) for count in sequences], view.all_sequences
    fig = Figure(1, f"convergence-{total}")
    fig.x_axis(1, gettext("calibration sequences"), type="log", tickvals=sequences, ticktext=counts)
    fig.y_axis(1, gettext("difference from the latest ratios"), tickformat=".1%", rangemode="tozero", nticks=5)
    columns = {gettext("Sequences"): counts}
    for measure, (name, line) in LINES.items():
        distances = getattr(view, measure)[:-1]
        style: Json = {"mode": "lines+markers", "meta": figure.OVERLAY_ALWAYS, "line": line}
        fig.curve(1, translate(name), distances, translate(name) + " %{y:.2%}", sequences, **style)
        columns[translate(name)] = [number(distance, ".2%") for distance in distances]
    return fig.chart(
        translate(CONVERGENCE),
        gettext(
            "How much calibration is enough? Difference between the ratios estimated from fewer sequences and "
            "those estimated from {latest} sequences. {conclusion}",
            latest=latest,
            conclusion=_conclusion(view),
        ),
        columns,
        protocol=formatting.provenance(Provenance("so far" if latest < total else "here", latest, total)),
    )


def _conclusion(view: ConvergenceView) -> str:
    """The number of sequences from which on all ratios have converged."""
    changing = [count for count, distance in zip(view.sequences, view.largest, strict=True) if distance > TOLERANCE]
    converged = [count for count in view.sequences[:-1] if count > max(changing, default=0)]
    points = 100 * TOLERANCE
    if not converged:
        return gettext(
            "At least one module's ratio still changes by more than {points:g} percentage points.", points=points
        )
    return gettext(
        "With {sequences} or more of the {latest} sequences, no module's ratio differs from its latest value by "
        "more than {points:g} percentage points.",
        sequences=converged[0],
        latest=view.sequences[-1],
        points=points,
    )


def check_summary(view: EstimatorCheckView | None, estimator: str) -> str:
    """The rank correlations, and the misjudged modules (HTML)."""
    if view is None:
        return ""
    correlations = {ESTIMATORS[name]: rhos for name, rhos in view.agreement.rho.items()}
    correlations[gettext("highest possible")] = view.agreement.ceiling
    rows = [
        (name, *(figure.cell(rhos[module], ".2f") for module in MODULES_IN_WORDS))
        for name, rhos in correlations.items()
    ]
    table = formatting.table([f"ρ, {name}" for name in MODULES_IN_WORDS.values()], rows, "isx-wide")
    predictor = shown_estimator(view, estimator)
    misjudged = [module for module in view.agreement.misjudged if module.estimator == predictor]
    name = ESTIMATORS[predictor]
    lines = "".join(f"<li>{_misjudged(module, escape(name))}</li>" for module in misjudged)
    if misjudged:
        heading = gettext(
            "Modules whose predicted and measured ranks differ by more than a third of the number of layers, even "
            "allowing for noise (rank 1: most damage):"
        )
    else:
        heading = gettext(
            "Allowing for noise, no module's predicted rank ({name}) differs from its measured rank by more than a "
            "third of the number of layers.",
            name=escape(name),
        )
    return f'{table}<div class="isx-words"><p>{heading}</p>{f"<ul>{lines}</ul>" if misjudged else ""}</div>'


def _misjudged(module: Misjudged, name: str) -> str:
    more = gettext("more" if module.measured < module.predicted else "less")
    values = vars(module) | {"module": MODULES_IN_WORDS[module.module], "name": name, "more": more}
    return gettext(
        "Slicing layer {layer}'s {module} does {more} damage than {name} predicts: measured rank {measured} of {of}, "
        "predicted rank {predicted}.",
        **values,
    )


def search_summary(view: RatioSearchView | None, estimator: str) -> str:
    """How far the search is, and what it gained (HTML)."""
    if view is None:
        return ""
    text = gettext(
        "{better} of {generations} generations found a better allocation; {done:.0%} of the search is done.",
        generations=len(view.found.changes),
        done=min(1.0, view.found.passes / view.budget),
        better=sum(change != 0 for change in view.found.changes),
    )
    if isinstance(view.found, SearchResult):
        text += " " + gettext(
            "On text that the search did not read, KL from the dense model changed from {before:.3f} to "
            "<b>{after:.3f}</b> nats per token.",
            before=view.found.before,
            after=view.found.after,
        )
    elif view.found.changes:
        text += " " + gettext(
            "On the text used for selection, KL changed by <b>{change:+.0%}</b>, which is an optimistic estimate. "
            "When the search ends, KL is measured on other text.",
            change=math.prod(1 + change for change in view.found.changes) - 1,
        )
    return f'<div class="isx-words"><p>{text}</p></div>'
