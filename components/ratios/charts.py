"""The charts of pruning ratios and importances: pure functions from plain numbers (`views.py`) to a `Chart`."""

from collections.abc import Mapping, Sequence
from typing import Any

from ..i18n.language import gettext, number, term
from ..state.views import ImportanceCurve, LayerView, PlanView
from ..ui import figure, formatting
from ..ui.figure import Chart, Figure
from ..ui.labels import ESTIMATOR_COLOURS, ESTIMATORS, MODULES


def ratio_chart(plan: PlanView, selected: int = 0) -> Chart:
    """Planned ratio per layer: bars for the chosen estimator, a line for each other estimator, and the cap."""
    layers, top = len(plan.layers), min(1.0, plan.cap + 0.07)
    fig = Figure(2, f"ratios-{layers}")
    fig.layout["barmode"] = "overlay"  # the pinned setting's outlines are drawn over the bars
    fig.over_layers(layers, selected)
    kept = {module: [_kept(layer, module) for layer in plan.layers] for module in MODULES}
    for row, module in enumerate(MODULES, start=1):
        meta = {"module": module, **figure.OVERLAY_ALWAYS}  # `assets/overrides.js` reads the module
        ratios, below = [getattr(layer, module) for layer in plan.layers], gettext("<br>kept: %{{customdata}}")
        add_bars(fig, module, ratios, below, meta=meta, customdata=kept[module])
        for estimator, others in plan.others.items():
            name = ESTIMATORS.get(estimator, estimator)
            add_line(fig, row, [pair[row - 1] for pair in others], estimator, name, legendgroup=estimator)
        fig.y_axis(row, range=[0, top], dtick=0.2, hoverformat=".1%")
        fig.shapes.append(figure.across(row, plan.cap, {"color": "@quiet", "width": 1, "dash": "2px,3px"}))
    place = ("x domain", 1), ("y", plan.cap)
    cap = gettext("cap {cap:.0%}", cap=plan.cap)
    fig.annotations.append(figure.annotation(cap, *place, ("right", "bottom"), "@quiet", 12))
    return fig.chart(
        gettext("Pruning ratio per layer"),
        gettext(
            "Which layers are pruned, and how much? Bars: planned ratio of each module, before it is rounded to whole "
            "heads, channels and neurons; estimator: {estimator}.",
            estimator=ESTIMATORS.get(plan.estimator, plan.estimator),
        ),
        {
            gettext("Layer"): map(str, range(layers)),
            gettext("Attention, planned ratio"): [number(layer.attention, ".1%") for layer in plan.layers],
            gettext("Attention kept"): kept["attention"],
            gettext("MLP, planned ratio"): [number(layer.mlp, ".1%") for layer in plan.layers],
            gettext("MLP kept"): kept["mlp"],
        },
        protocol=formatting.provenance(plan.source),
    )


def add_bars(fig: Figure, module: str, ratios: Sequence[float], below: str = "", **more: Any) -> None:
    """The planned ratios of a module in every layer, in the module's panel; `below` is shown below a ratio."""
    row, name = 1 + list(MODULES).index(module), MODULES[module]
    hover = gettext("<b>layer %{{x}}, {module}</b><br>planned ratio: %{{y:.1%}}", module=name)
    fig.y_axis(row, gettext("{module}, planned ratio", module=name), tickformat=".0%")
    fig.bars(row, name, ratios, hover + below, module, **more)


def add_line(fig: Figure, row: int, ratios: Sequence[float], estimator: str, name: str, **more: Any) -> None:
    """An estimator's pruning ratios of a module."""
    line = figure.line(ESTIMATOR_COLOURS.get(estimator, "other"), 1.6)
    fig.curve(row, name, ratios, name + " %{y:.1%}", line=line, **more)


def importance_chart(curves: Mapping[str, ImportanceCurve], layer: int) -> Chart:
    """The sorted importances of one layer and of all layers, and the global threshold that determines the ratio."""
    fig = Figure(len(curves), "importance", side_by_side=True)
    for column, (module, curve) in enumerate(curves.items(), start=1):
        # A log axis has no zero: units of zero importance are drawn six decades below the strongest.
        floor, unit = 1e-6 * max([*curve.all_layers, 1e-30]), term(curve.unit)
        chosen = gettext("Layer {layer}", layer=layer)
        for label, values, line, meta in (
            (gettext("All layers"), curve.all_layers, figure.line("dense", 1.6), {}),
            (chosen, curve.chosen, figure.line(module, 2.4), figure.OVERLAY_IF_DIFFERENT),
        ):
            x = [figure.rounded(rank / len(values)) for rank in range(1, len(values) + 1)]
            y = [max(value, floor) for value in values]
            hover = gettext(
                "{label}: %{{x:.0%}} of the {unit} have an importance of at least %{{y:.2e}}", label=label, unit=unit
            )
            fig.curve(column, label, y, hover, x, line=line, meta=meta, legendgroup=label, showlegend=False)
        fig.x_axis(column, gettext("{unit}, most important first", unit=unit), tickformat=".0%", range=[0, 1])
        title = gettext("importance") if column == 1 else ""
        fig.y_axis(column, title, type="log", exponentformat="power", dtick=1, nticks=6)
        comparison = gettext("no threshold (uniform ratios)")
        if curve.threshold is not None:
            dashed = {"color": "@ink", "width": 1.4, "dash": "5px,3px"}
            height = max(curve.threshold, floor)
            fig.shapes.append(figure.across(column, height, dashed, name=figure.SETTING_SHAPE))
            comparison = gettext("{chosen_below:.0%} below the threshold", chosen_below=curve.chosen_below)
        if curve.chosen_below > 0:
            fig.shapes.append(figure.removed_region(column, 1 - curve.chosen_below))
        fig.heading(column, f"<b>{MODULES[module]}</b>: {comparison}")
    thresholds = [curve.threshold for curve in curves.values()]
    return fig.chart(
        gettext("Importances in layer {layer} and the global thresholds", layer=layer),
        gettext(
            "Why is layer {layer} pruned this much? {reason} Grey: all layers together; blue: this layer.",
            layer=layer,
            reason=f"{_reason(curves)} {fired_rules(curves['attention'].rules)}".rstrip(),
        ),
        {
            gettext("Module"): [MODULES[module] for module in curves],
            gettext("Threshold"): [gettext("none") if t is None else number(t, ".3e") for t in thresholds],
            gettext("Layer {layer} below threshold", layer=layer): [
                number(curve.chosen_below, ".1%") for curve in curves.values()
            ],
            gettext("All layers below threshold"): [number(curve.all_below, ".1%") for curve in curves.values()],
        },
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
        reason = gettext(
            "One threshold for attention and one for MLPs apply to all layers. Before the cap and any locks are "
            "applied, a module's ratio is the fraction of its units below the threshold; another score (contribution "
            "to the output times sensitivity of the loss) decides which neurons and rotary pairs are removed."
        )
    else:
        reason = gettext(
            "One threshold for attention and one for MLPs apply to all layers. Runtime shapes: before the cap and any "
            "locks are applied, a module's ratio is the fraction of its heads, or of its blocks of 32 neurons, whose "
            "mean importance lies below the threshold; another score (contribution to the output times sensitivity of "
            "the loss) decides which neurons are removed."
        )
    ranks = {module: curve.rank for module, curve in curves.items()}
    text = gettext("By ratio, its attention is number {attention} among the layers, its MLP number {mlp}.", **ranks)
    return f"{reason} {text}"


def fired_rules(fired: Sequence[str]) -> str:
    """The rule that decides each head of a layer, where one does."""
    texts = {
        "few of the best channels": gettext("less than a quarter of the mean number of the best channels"),
        "captured energy": gettext("the others capture more energy without them"),
        "width": gettext("with them, all would be narrower than three quarters of their width"),
        "locked": gettext("locked by hand"),
        "displaced by a locked head": gettext("changed by locked heads"),
    }
    heads = {rule: ", ".join(str(head) for head, by in enumerate(fired) if by == rule) for rule in texts}
    listed = "; ".join(f"{heads[rule]} ({text})" for rule, text in texts.items() if heads[rule])
    return gettext("Its heads that a rule decides: {heads}.", heads=listed) if listed else ""
