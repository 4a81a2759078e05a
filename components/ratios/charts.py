"""The charts of pruning ratios and importances: pure functions from plain numbers (`views.py`) to a `Chart`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from ..i18n.language import gettext, number, term
from ..state.views import ImportanceCurve, LayerView, PlanView
from ..ui import figure, formatting
from ..ui.figure import Chart, Json
from ..ui.labels import ESTIMATOR_COLOURS, ESTIMATORS, MODULES


def ratio_chart(plan: PlanView, selected: int = 0) -> Chart:
    """Planned ratio per layer: bars for the chosen estimator, a line for each other estimator, and the cap."""
    data: list[Json] = []
    for row, module in enumerate(MODULES, start=1):
        axes = figure.axes_of(row)
        bars = bars_of(
            [getattr(layer, module) for layer in plan.layers], module, axes, gettext("<br>kept: %{{customdata}}")
        )
        # `assets/overrides.js` reads the module.
        meta, kept = {"module": module, **figure.GHOST_ALWAYS}, [_kept(layer, module) for layer in plan.layers]
        data.append({**bars, "meta": meta, "customdata": kept})
        for estimator, ratios in plan.others.items():
            label = ESTIMATORS.get(estimator, estimator)
            line = line_of([ratio[row - 1] for ratio in ratios], estimator, label, axes)
            data.append({**line, "legendgroup": estimator})
    layout = figure.layout_of(2, revision=f"ratios-{len(plan.layers)}")
    top = min(1.0, plan.cap + 0.07)
    for row, name in enumerate(MODULES.values(), start=1):
        layout[f"yaxis{figure.suffix(row)}"].update(
            title=figure.title(gettext("{module}, planned ratio", module=name)),
            tickformat=".0%",
            range=[0, top],
            dtick=0.2,
            hoverformat=".1%",
        )
    figure.layer_axes(layout, 2, len(plan.layers))
    layout["bargap"], layout["barmode"] = 0.28, "overlay"  # the pinned setting's outlines are drawn over the bars
    layout["shapes"] = [figure.band(selected)] + [figure.level(row, plan.cap) for row in (1, 2)]
    layout["annotations"] = [figure.label(1, 1, plan.cap, gettext("cap {cap:.0%}", cap=plan.cap))]
    return Chart(
        title=gettext("Pruning ratio per layer"),
        note=gettext(
            "Which layers are pruned, and how much? Bars: planned ratio of each module, before it is rounded to whole "
            "heads, channels and neurons; estimator: {estimator}.",
            estimator=ESTIMATORS.get(plan.estimator, plan.estimator),
        ),
        hint=gettext("Click a layer."),
        protocol=formatting.provenance(plan.source),
        data=data,
        layout=layout,
        columns=[
            gettext("Layer"),
            gettext("Attention, planned ratio"),
            gettext("Attention kept"),
            gettext("MLP, planned ratio"),
            gettext("MLP kept"),
        ],
        rows=[
            [
                str(index),
                number(layer.attention, ".1%"),
                _kept(layer, "attention"),
                number(layer.mlp, ".1%"),
                _kept(layer, "mlp"),
            ]
            for index, layer in enumerate(plan.layers)
        ],
        layers=len(plan.layers),
        selected=selected,
    )


def bars_of(ratios: Sequence[float], module: str, axes: Json, more: str = "") -> Json:
    """The planned ratios of a module in every layer; `more` is shown below a ratio."""
    hover = gettext("<b>layer %{{x}}, {module}</b><br>planned ratio: %{{y:.1%}}", module=MODULES[module])
    return {
        "type": "bar",
        "name": MODULES[module],
        "x": list(range(len(ratios))),
        "y": [figure.rounded(ratio) for ratio in ratios],
        "marker": {"color": f"@{module}", "line": {"width": 0}},
        "hovertemplate": f"{hover}{more}<extra></extra>",
        "showlegend": False,
        **axes,
    }


def line_of(ratios: Sequence[float], estimator: str, name: str, axes: Json) -> Json:
    """An estimator's pruning ratios of a module; the first panel's line is in the legend."""
    return {
        "type": "scatter",
        "mode": "lines",
        "name": name,
        "showlegend": axes["xaxis"] == "x",
        "x": list(range(len(ratios))),
        "y": [figure.rounded(ratio) for ratio in ratios],
        "line": figure.line(ESTIMATOR_COLOURS.get(estimator, "other"), 1.6),
        "hovertemplate": name + " %{y:.1%}<extra></extra>",
        **axes,
    }


def importance_chart(curves: Mapping[str, ImportanceCurve], layer: int) -> Chart:
    """The sorted importances of one layer and of all layers, and the global threshold that determines the ratio."""
    data: list[Json] = []
    rows: list[list[str]] = []
    layout = figure.layout_of(len(curves), revision="importance", vertical=False)
    shapes, headings = [], []
    for column, (module, curve) in enumerate(curves.items(), start=1):
        axes = figure.axes_of(column)
        floor = _floor(curve)
        for label, values, line, meta in (
            (gettext("All layers"), curve.all_layers, figure.line("dense", 1.6), {}),
            (gettext("Layer {layer}", layer=layer), curve.chosen, figure.line(module, 2.4), figure.GHOST_IF_DIFFERENT),
        ):
            fractions, heights = figure.thinned([max(value, floor) for value in values])
            data.append(
                {
                    "type": "scatter",
                    "mode": "lines",
                    "name": label,
                    "legendgroup": label,
                    "showlegend": False,
                    "x": fractions,
                    "y": heights,
                    "line": line,
                    "meta": meta,
                    "hovertemplate": gettext(
                        "{label}: %{{x:.0%}} of the {unit} have an importance of at least %{{y:.2e}}",
                        label=label,
                        unit=term(curve.unit),
                    )
                    + "<extra></extra>",
                    **axes,
                }
            )
        layout[f"xaxis{figure.suffix(column)}"].update(
            title=figure.title(gettext("{unit}, most important first", unit=term(curve.unit))),
            tickformat=".0%",
            range=[0, 1],
        )
        layout[f"yaxis{figure.suffix(column)}"].update(
            title=figure.title(gettext("importance") if column == 1 else ""),
            type="log",
            exponentformat="power",
            dtick=1,
            nticks=6,
        )
        if curve.threshold is not None:
            shapes.append(figure.threshold_line(column, max(curve.threshold, floor)))
        if curve.chosen_below > 0:
            shapes.append(figure.removed_region(axes, 1 - curve.chosen_below))
        below = gettext("{chosen_below:.0%} below the threshold", chosen_below=curve.chosen_below)
        comparison = below if curve.threshold is not None else gettext("no threshold (uniform ratios)")
        headings.append(figure.heading(f"<b>{MODULES[module]}</b>: {comparison}", axes))
        threshold = gettext("none") if curve.threshold is None else number(curve.threshold, ".3e")
        rows.append([MODULES[module], threshold, number(curve.chosen_below, ".1%"), number(curve.all_below, ".1%")])
    layout["shapes"], layout["annotations"] = shapes, headings
    return Chart(
        title=gettext("Importances in layer {layer} and the global thresholds", layer=layer),
        note=gettext(
            "Why is layer {layer} pruned this much? {reason} Grey: all layers together; blue: this layer.",
            layer=layer,
            reason=_reason(curves),
        ),
        data=data,
        layout=layout,
        side_by_side=True,
        columns=[
            gettext("Module"),
            gettext("Threshold"),
            gettext("Layer {layer} below threshold", layer=layer),
            gettext("All layers below threshold"),
        ],
        rows=rows,
    )


def _kept(layer: LayerView, module: str) -> str:
    if not (layer.neurons if module == "mlp" else layer.heads):
        return gettext("nothing: the whole module is removed")
    if module == "mlp":
        return gettext(
            "{neurons:,} of {neurons_dense:,} neurons", neurons=layer.neurons, neurons_dense=layer.neurons_dense
        )
    return gettext(
        "{heads} of {heads_dense} heads, {dim} of {dim_dense} channels each",
        heads=layer.heads,
        heads_dense=layer.heads_dense,
        dim=layer.dim,
        dim_dense=layer.dim_dense,
    )


def _reason(curves: Mapping[str, ImportanceCurve]) -> str:
    if all(curve.threshold is None for curve in curves.values()):
        return gettext("Uniform ratios do not depend on importances, which are shown for comparison.")
    if all(curve.one_by_one for curve in curves.values()):
        return gettext(
            "One threshold for attention and one for MLPs apply to all layers. Before the cap and any locks are "
            "applied, a module's ratio is the fraction of its units below the threshold; another score (contribution "
            "to the output times sensitivity of the loss) decides which heads and neurons are removed."
        )
    return gettext(
        "One threshold for attention and one for MLPs apply to all layers. Runtime shapes: before the cap and any "
        "locks are applied, a module's ratio is the fraction of its heads, or of its blocks of 32 neurons, whose mean "
        "importance lies below the threshold; another score (contribution to the output times sensitivity of the "
        "loss) decides which neurons are removed."
    )


def _floor(curve: ImportanceCurve) -> float:
    # A log axis has no zero: units of zero importance are drawn six decades below the strongest.
    return max(max(curve.all_layers, default=1.0), 1e-30) * 1e-6
