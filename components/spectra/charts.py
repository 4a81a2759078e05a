"""The charts of the Spectra tab, from plain numbers (`views.py`). Pure."""

from __future__ import annotations

from typing import Any

from ..i18n.language import gettext, lazy_gettext, translate
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


def variance_chart(view: SpectraView) -> Chart:
    """Explained variance over principal axes, with the kept ranks: heads on the left, MLP and residual stream right."""
    fig = Figure(2, f"variance-{view.dim}", side_by_side=True, hovermode="closest")
    fig.x_axis(1, gettext("axes of the head"), range=[0, AXIS_MARGIN * view.dim], dtick=_round_step(view.dim))
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


def _round_step(size: int) -> int:
    return max(1, 2 ** (size.bit_length() - 3))
