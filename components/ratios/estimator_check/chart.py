"""The chart under *Was it right?*: measured against foretold, a point a module. Pure."""

from __future__ import annotations

import math
from collections.abc import Sequence

from components.ratios.estimator_check.views import ModuleVerdict, VerdictView
from components.ui import figure
from components.ui.figure import Chart, Json
from components.ui.labels import ESTIMATORS

KINDS = {"attention": "Attention", "mlp": "MLP"}


def verdict_chart(view: VerdictView | None, estimator: str, selected: int = 0) -> Chart:
    """Loss gained by slicing each module alone, over what the estimator foretold; empty axes before it is measured.

    The estimators only differ in attention; uniform foretells nothing, so the PCA-aware one is shown for it.
    """
    estimator = judged(estimator)
    layout = figure.layout_of(2, revision=f"verdict-{view is None}", vertical=False)
    layout["hovermode"], layout["showlegend"] = "closest", False
    layout["annotations"], layout["shapes"] = [], []
    data = []
    for column, (kind, words) in enumerate(KINDS.items(), start=1):
        axes = figure.axes_of(column)
        own = [module for module in view.modules if module.module == kind] if view else []
        data.append(_points(own, kind, estimator, axes))
        layout[f"xaxis{figure.suffix(column)}"].update(
            title=figure.title("foretold: importance of what goes"), exponentformat="power", nticks=6
        )
        layout[f"yaxis{figure.suffix(column)}"].update(
            title=figure.title("measured: loss gained, nats a token" if column == 1 else ""),
            tickformat=".3~f",
            zeroline=True,
            zerolinecolor="@rule",
        )
        if view is None:
            for axis in "xy":
                layout[f"{axis}axis{figure.suffix(column)}"].update(showticklabels=False, range=[0, 1])
        if any(module.foretold[estimator] > 0 for module in own):
            layout[f"xaxis{figure.suffix(column)}"].update(type="log", **_ticks([m.foretold[estimator] for m in own]))
        layout["annotations"].append(figure.heading(f"<b>{words}</b>: {_rho(view, estimator, kind)}", axes))
    note = "Slice each module alone, take the loss, and see whether the importances foretold it."
    if view:
        note = (
            f"A point: {view.ratio:.0%} of one module sliced, nothing else; the loss on {view.measured_on}, ± one "
            "standard error. ρ: Spearman's rank correlation. Click a point."
        )
    layers = 1 + max((module.layer for module in view.modules), default=-1) if view else 0
    return Chart(
        title="Was it right?",
        note=note,
        data=data,
        layout=layout,
        columns=["Layer", "Module", "Loss gained", "± error", "Place", f"Place foretold, {ESTIMATORS[estimator]}"],
        rows=[
            [
                str(one.layer),
                KINDS[one.module],
                f"{one.increase:+.4f}",
                f"{one.error:.4f}",
                str(one.place),
                str(one.places[estimator]),
            ]
            for one in (view.modules if view else ())
        ],
        layers=layers,
        selected=selected,
        beside=True,
    )


def judged(estimator: str) -> str:
    """The estimator whose foretelling is shown: the chosen one where it foretells anything."""
    return "fisher" if estimator == "fisher" else "pca"


def _points(modules: Sequence[ModuleVerdict], kind: str, estimator: str, axes: Json) -> Json:
    return {
        "type": "scatter",
        "mode": "markers",
        "name": KINDS[kind],
        "x": [figure.rounded(one.foretold[estimator]) for one in modules],
        "y": [figure.rounded(one.increase) for one in modules],
        "error_y": {
            "type": "data",
            "array": [figure.rounded(one.error) for one in modules],
            "color": f"@{kind}",
            "thickness": 0.8,
            "width": 0,
        },
        "customdata": [one.layer for one in modules],
        "text": [
            f"number {one.place} of {len(modules)} as measured, number {one.places[estimator]} as foretold"
            for one in modules
        ],
        "hovertemplate": f"<b>layer %{{customdata}}, {KINDS[kind]}</b><br>%{{y:+.4f}} nats a token<br>%{{text}}"
        "<extra></extra>",
        "marker": {"color": f"@{kind}", "size": 8},
        "selected": {"marker": {"size": 15, "opacity": 1}},
        "unselected": {"marker": {"opacity": 0.6}},
        **axes,
    }


def _ticks(values: Sequence[float]) -> Json:
    # plotly writes 2 and 5 between powers of ten as lone digits, which nobody reads as 0.0002
    top = max(values)
    exponents = range(math.floor(math.log10(max(min(values), 1e-6 * top))), math.ceil(math.log10(top)) + 1)
    marks = [digit * 10.0**exponent for exponent in exponents for digit in (1, 2, 5)]
    return {"tickvals": marks, "ticktext": [f"{mark:.10f}".rstrip("0").rstrip(".") for mark in marks]}


def _rho(view: VerdictView | None, estimator: str, kind: str) -> str:
    if view is None:
        return "not measured yet"
    return f"ρ {number(view.rho[estimator][kind])} ({ESTIMATORS[estimator]})"


def number(rho: float | None) -> str:
    """Two digits, or a dash where there is none."""
    return "–" if rho is None else f"{rho:.2f}"
