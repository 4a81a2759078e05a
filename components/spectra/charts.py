"""The charts of the Spectra tab, from plain numbers (`views.py`). Pure."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

from ..i18n.language import gettext, lazy_gettext, number, percentage, translate
from ..ui import figure, formatting
from ..ui.figure import Chart, Figure, Json
from ..ui.palette import DASHES
from .views import Curve, SpectraView

TITLES = {
    "variance": lambda layer: gettext("Explained variance, layer {layer}", layer=layer),
    "ranks": lambda _: gettext("Effective rank per head"),
    "pairs": lambda layer: gettext("Attention score per rotary (RoPE) pair, layer {layer}", layer=layer),
}
WIDE_CURVES = {  # name, colour, dash, width
    "mlp": (lazy_gettext("MLP neurons"), "mlp", "solid", 2.4),
    "directions": (lazy_gettext("Residual stream, every token scaled to length 1"), "cross", DASHES["cross"], 2.4),
    "residual": (lazy_gettext("Residual stream, raw"), "cross", "dot", 1.4),
}
AXIS_MARGIN = 1.03  # so that a ring at the end of an axis is not cut off
COLOUR_TICKS = {-3: 0.1, -2: 1, -1: 10, -0.5: None}  # per cent of a head's energy, by the logarithm of the fraction


def variance_chart(view: SpectraView) -> Chart:
    """Explained variance over principal axes, with the kept ranks: heads on the left, MLP and residual stream right."""
    fig = Figure(2, f"variance-{view.dim}", side_by_side=True, hovermode="closest")
    fig.x_axis(
        1,
        gettext("axes of the head"),
        range=[0, AXIS_MARGIN * view.dim],
        dtick=max(1, 2 ** (view.dim.bit_length() - 3)),
    )
    fig.x_axis(2, gettext("fraction of all axes"), tickformat=".0%", range=[0, AXIS_MARGIN])
    fig.y_axis(1, gettext("explained variance"), tickformat=".0%", range=[0, 1.05], dtick=0.25)
    fig.y_axis(2, tickformat=".0%", range=[0, 1.05], dtick=0.25)
    kept_heads, dim = view.heads[view.layer], view.dims[view.layer]
    fig.shapes.append(figure.removed_region(1, dim if kept_heads else 0, view.dim))
    rows = [*_heads(fig, view), *_wide(fig, view)]
    heads = neurons = gettext("the whole module is removed")
    if kept_heads:
        heads = gettext(
            "{heads} of {heads_dense} heads kept,<br>{dim} of {dim_dense} channels in each",
            heads=len(kept_heads),
            heads_dense=len(view.curves.heads),
            dim=dim,
            dim_dense=view.dim,
        )
    if view.neurons and view.curves.mlp:
        neurons = gettext("{neurons:,} of {dense:,} neurons kept", neurons=view.neurons, dense=view.curves.mlp.size)
    elif view.neurons:
        neurons = gettext("follows in a moment")
    if view.width and view.curves.residual:
        axes = view.curves.residual.size
        neurons += gettext("<br>cross-module: {width:,} of {axes:,} axes", width=view.width, axes=axes)
    for axis, name, text in (
        ("", gettext("Attention"), heads),
        ("2", gettext("MLP and residual stream"), neurons),
    ):  # at the lower right, which cumulative curves leave empty
        place = (f"x{axis} domain", 0.97), (f"y{axis} domain", 0.05)
        label = f"<b>{name}</b><br>{text}"
        fig.annotations.append(figure.annotation(label, *place, ("right", "bottom"), "@ink", 13, align="right"))
    return fig.chart(
        TITLES["variance"](view.layer),
        gettext(
            "How few directions does the layer use? Fraction of the variance that the first principal axes "
            "explain. Rings mark how many axes, or neurons of the MLP, are kept; shading marks what is removed."
        ),
        ([gettext("Activation"), gettext("Axes"), gettext("Axes for 95%"), gettext("Kept")], rows),
        protocol=formatting.provenance(view.source),
    )


def _heads(fig: Figure, view: SpectraView) -> list[list[str]]:
    """Add the curves of the query heads and of the shared value heads, with rings; returns the rows of the table."""
    kept_heads, dim, heads = view.heads[view.layer], str(view.dims[view.layer]), view.curves.heads
    rows = []
    first_of_kind = {index in kept_heads: index for index in reversed(range(len(heads)))}
    for index, curve in enumerate(heads):
        is_kept = index in kept_heads
        name = gettext("Query heads") if is_kept else gettext("Query heads removed")
        label = gettext("head {index}", index=index)
        line: Json = {"color": "@attention", "dash": "solid"} if is_kept else {"color": "@quiet", "dash": "dot"}
        legend: Json = {"legendgroup": str(is_kept), "showlegend": index == first_of_kind[is_kept]}
        _curve(fig, 1, name, label, curve, line | {"width": 1.2}, **legend)
        rows.append(_row(gettext("Query head {index}", index=index), curve, dim if is_kept else ""))
    shared = view.curves.groups if len(view.curves.groups) < len(heads) else ()
    for index, curve in enumerate(shared):
        label = gettext("value head {index}, over all query heads that share it", index=index)
        line = {"color": "@attention", "width": 2.6}
        _curve(fig, 1, gettext("Value heads"), label, curve, line, showlegend=index == 0, legendgroup="value")
        rows.append(_row(gettext("Value head {index}", index=index), curve, dim if kept_heads else ""))
        if kept_heads:
            _ring(fig, 1, curve, view.dims[view.layer], "@attention")
    return rows


def _wide(fig: Figure, view: SpectraView) -> list[list[str]]:
    """Add the curves of the MLP and of the residual stream, with rings; returns the table's rows."""
    rows = []
    for place, (label, colour, dash, width) in WIDE_CURVES.items():
        curve: Curve | None = getattr(view.curves, place)
        if curve is None:
            continue
        name, line = translate(label), {"color": f"@{colour}", "width": width, "dash": dash}
        _curve(fig, 2, name, name, curve, line, showlegend=True)
        kept = view.neurons if place == "mlp" else view.width
        if kept:
            _ring(fig, 2, curve, kept, f"@{colour}")
        rows.append(_row(name, curve, str(kept or ("" if place == "mlp" else "–"))))
    if not rows:
        # plotly does not draw axes without a trace, and misplaces their annotations
        fig.data.append({"type": "scatter", "x": [None], "y": [None], "showlegend": False, **figure.axes_of(2)})
    return rows


def _curve(fig: Figure, panel: int, name: str, label: str, curve: Curve, line: Json, **more: Any) -> None:
    """A head's curve over its axes in the first panel, another one over the fraction of its axes in the second."""
    if panel == 1:
        scale, hover = curve.size, gettext("{name}: %{{x:.0f}} axes explain %{{y:.1%}}", name=label)
    else:
        scale, hover = 1, gettext("{name}: %{{x:.0%}} of the axes explain %{{y:.1%}}", name=label)
    x = [0, *(figure.rounded(rank * scale / curve.size) for rank in curve.ranks)]
    fig.curve(panel, name, [0, *curve.explained], hover, x, line=line, **more)


def _row(name: str, curve: Curve, kept: str) -> list[str]:
    return [name, str(curve.size), str(curve.effective_rank), kept or gettext("removed")]


def _ring(fig: Figure, panel: int, curve: Curve, rank: int, colour: str) -> None:
    """Marks the kept rank on a curve. A shape rather than a trace: it moves with the slider, the curves do not."""
    place = {"xanchor": rank if panel == 1 else rank / curve.size, "yanchor": figure.rounded(curve.at(rank))}
    axes = {"xref": f"x{figure.suffix(panel)}", "yref": f"y{figure.suffix(panel)}"}
    box = {"xsizemode": "pixel", "ysizemode": "pixel", "x0": -5, "x1": 5, "y0": -5, "y1": 5}
    style = {"fillcolor": "@page", "line": {"color": colour, "width": 2.2}}
    fig.shapes.append({"type": "circle", "name": figure.SETTING_SHAPE, **axes, **place, **box, **style})


def rank_chart(view: SpectraView) -> Chart:
    """Layer x head: the number of axes that explain 95 % of the head's output; crosses mark removed heads."""
    layers, heads = range(len(view.ranks)), range(len(view.ranks[0]))
    removed = [[head for head in heads if head not in view.heads[layer]] for layer in layers]
    fig = Figure(1, f"ranks-{len(layers)}-{len(heads)}", hovermode="closest")
    hover = gettext(
        "<b>layer %{{x}}, head %{{y}}</b><br>%{{z}} of {count} axes explain 95% of its output", count=view.dim
    )
    by_head = [list(ranks) for ranks in zip(*view.ranks, strict=True)]
    _heatmap(fig, by_head, {0: "0", view.dim: gettext("{count} axes", count=view.dim)}, hover)
    _crosses(fig, [(layer, head) for layer in layers for head in removed[layer]], gettext("head removed"))
    fig.x_axis(1, gettext("layer"), range=[-0.5, len(layers) - 0.5], dtick=figure.step(len(layers)))
    fig.y_axis(1, gettext("query head"))
    # A heatmap hides a fill below it, so the chosen layer gets an outline.
    outline = {"xref": "x", "layer": "above", "fillcolor": "rgba(0,0,0,0)", "line": {"width": 2, "color": "@ink"}}
    fig.shapes.append(figure.band(view.layer) | outline)
    kept = [view.dims[layer] if view.heads[layer] else 0 for layer in layers]
    return fig.chart(
        TITLES["ranks"](view.layer),
        gettext(
            "How many axes does each head need? Number of principal axes, of {count}, that explain 95% of the "
            "head's output. × marks heads that are removed.",
            count=view.dim,
        ),
        {
            gettext("Layer"): map(str, layers),
            **{gettext("Head {head}", head=head): map(str, ranks) for head, ranks in enumerate(by_head)},
            gettext("Heads removed"): [", ".join(map(str, row)) or gettext("none") for row in removed],
            gettext("Channels kept"): map(str, kept),
        },
        hint=gettext("Click a layer."),
        protocol=formatting.provenance(view.source),
        layers=len(layers),
        selected=view.layer,
    )


def pair_chart(view: SpectraView) -> Chart:
    """Key head x rotary pair, fastest first: the energy of queries times keys per pair; crosses mark removed pairs."""
    energy, is_kept = view.pairs.energy, view.pairs.kept
    heads, pairs = range(len(energy)), range(len(view.pairs.angles))
    turns = [2 * math.pi / angle for angle in view.pairs.angles]
    fractions = [[value / max(sum(row), 1e-30) for value in row] for row in energy]
    fig = Figure(1, f"pairs-{len(heads)}-{len(pairs)}", hovermode="closest")
    hover = gettext(
        "<b>key head %{{y}}, pair %{{x}}</b><br>contributes %{{customdata[0]}} of the head's "
        "scores<br>a full turn takes %{{customdata[1]}} tokens"
    )
    labels = [
        [[number(value, ".1%"), _tokens(turn)] for value, turn in zip(row, turns, strict=True)] for row in fractions
    ]
    colour_ticks = {power: "" if percent is None else percentage(percent) for power, percent in COLOUR_TICKS.items()}
    logarithms = [[math.log10(max(fraction, 1e-6)) for fraction in row] for row in fractions]
    _heatmap(fig, logarithms, colour_ticks, hover, customdata=labels)
    removed = [(pair, head) for head in heads for pair in pairs if not is_kept[head][pair]]
    _crosses(fig, removed, gettext("pair removed"))

    def nearest(tokens: int) -> int:
        return min(pairs, key=lambda pair: abs(math.log(turns[pair] / tokens)))

    ticks = {nearest(10**power): _tokens(10**power) for power in range(1, 8) if turns[-1] >= 10**power}
    title, ends = gettext("rotary wavelength: tokens until the pair has turned once"), [-0.5, len(pairs) - 0.5]
    fig.x_axis(1, title, range=ends, tickvals=list(ticks), ticktext=list(ticks.values()))
    fig.y_axis(1, gettext("key head"))
    return fig.chart(
        TITLES["pairs"](view.layer),
        _pair_note(view),
        {
            gettext("Pair"): map(str, pairs),
            gettext("Tokens per turn"): map(_tokens, turns),
            **{gettext("Key head {head}", head=head): map(_carried, fractions[head], is_kept[head]) for head in heads},
        },
    )


def _pair_note(view: SpectraView) -> str:
    kept, count = max(map(sum, view.pairs.kept)), len(view.pairs.angles)
    kept_unrotated, all_unrotated = view.pairs.unrotated
    unrotated, kept_pairs = "", gettext("no key head is kept")
    if all_unrotated:
        unrotated = gettext(
            " {still} of {loose} channels without rotation are kept as well.", still=kept_unrotated, loose=all_unrotated
        )
    if kept:
        kept_pairs = gettext("each kept key head keeps {kept} of {count}", kept=kept, count=count)
    return gettext(
        "Which rotary pairs contribute most to the attention scores? The chart shows the mean absolute "
        "contribution of each pair, as a fraction of the sum over the pairs of its key head. Pairs marked × are "
        "removed: those to which the loss is least sensitive; "
        "{stay}.{unrotated}",
        stay=kept_pairs,
        unrotated=unrotated,
    )


def _heatmap(
    fig: Figure, by_head: Sequence[Sequence[float]], ticks: Mapping[float, str], hover: str, **more: Any
) -> None:
    """Add a row of shades for each head, from the first of the ticks (value to label) to the last one."""
    heads = len(by_head)
    place = {"orientation": "h", "x": 1, "xanchor": "right", "y": 1, "yanchor": "bottom", "xpad": 20, "ypad": 4}
    style = {"len": 0.4, "thickness": 8, "outlinewidth": 0, "tickangle": 0, "tickfont": {"color": "@quiet", "size": 11}}
    colorbar = {**place, **style, "tickvals": list(ticks), "ticktext": list(ticks.values())}
    fig.data.append(
        {
            "type": "heatmap",
            "x": list(range(len(by_head[0]))),
            "y": list(range(heads)),
            "z": by_head,
            "zmin": min(ticks),
            "zmax": max(ticks),
            "colorscale": [[0, "@panel"], [1, "@intraslice"]],
            "xgap": 1,
            "ygap": 1,
            "colorbar": colorbar,
            "hovertemplate": f"{hover}<extra></extra>",
            **more,
        }
    )
    fig.y_axis(1, range=[heads - 0.5, -0.5], dtick=figure.step(heads), showgrid=False)


def _crosses(fig: Figure, points: Sequence[tuple[int, int]], name: str) -> None:
    marker = {"symbol": "x-thin", "size": 8, "color": "@ink", "line": {"color": "@ink", "width": 1.5}}
    x, y = [x for x, _ in points], [y for _, y in points]
    fig.curve(1, name, y, x=x, mode="markers", meta=figure.OVERLAY_ALWAYS, marker=marker, showlegend=False)


def _carried(fraction: float, is_kept: bool) -> str:
    return number(fraction, ".1%") if is_kept else gettext("{share:.1%}, removed", share=fraction)


def _tokens(count: float) -> str:
    if count < 1e4:
        return number(count, ",.0f")
    return number(count / 1e3, ",.0f") + "k" if count < 1e6 else number(count / 1e6, ",.0f") + "M"
