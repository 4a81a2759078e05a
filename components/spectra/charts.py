"""The charts of the Spectra tab, from plain numbers (`views.py`). Pure."""

from __future__ import annotations

from ..i18n.language import gettext, lazy_gettext, translate
from ..ui import figure, formatting
from ..ui.figure import Chart, Json
from ..ui.palette import DASHES
from .views import Curve, SpectraView

TITLES = {
    "variance": lambda layer: gettext("Explained variance, layer {layer}", layer=layer),
    "ranks": lambda _: gettext("Effective rank per head"),
    "pairs": lambda layer: gettext("Attention score per rotary (RoPE) pair, layer {layer}", layer=layer),
}
WIDE_CURVES = {  # name, colour, dash, width
    "mlp": (lazy_gettext("MLP neurons"), "mlp", "solid", 2.4),
    "directions": (lazy_gettext("Residual stream, tokens at unit norm"), "cross", DASHES["cross"], 2.4),
    "residual": (lazy_gettext("Residual stream, raw"), "cross", "dot", 1.4),
}
AXIS_MARGIN = 1.03  # so that a ring at the end of an axis is not cut off


def variance_chart(view: SpectraView) -> Chart:
    """Explained variance over principal axes, with the kept ranks: heads on the left, MLP and residual stream right."""
    layout = figure.layout_of(2, revision=f"variance-{view.dim}", vertical=False)
    curves, layer = view.curves, view.layer
    kept_heads, dim = view.heads[layer], view.dims[layer]
    data: list[Json] = []
    rows: list[list[str]] = []
    for index, curve in enumerate(curves.heads):
        is_kept = index in kept_heads
        first_of_kind = next(i for i in range(len(curves.heads)) if (i in kept_heads) == is_kept)
        data.append(
            {
                **_curve(curve, gettext("head {index}", index=index), curve.size),
                "name": gettext("Query heads") if is_kept else gettext("Query heads removed"),
                "legendgroup": str(is_kept),
                "showlegend": index == first_of_kind,
                "line": {
                    "color": "@attention" if is_kept else "@quiet",
                    "width": 1.2,
                    "dash": "solid" if is_kept else "dot",
                },
            }
        )
        rows.append(
            [gettext("Query head {index}", index=index), *_sizes(curve), str(dim) if is_kept else gettext("removed")]
        )
    shared = curves.groups if len(curves.groups) < len(curves.heads) else ()
    for index, curve in enumerate(shared):
        name = gettext("value head {index}, over all query heads that share it", index=index)
        line = {"color": "@attention", "width": 2.6}
        data.append(
            {
                **_curve(curve, name, curve.size),
                "name": gettext("Value heads"),
                "showlegend": index == 0,
                "legendgroup": "value",
                "line": line,
            }
        )
        rows.append(
            [gettext("Value head {index}", index=index), *_sizes(curve), str(dim) if kept_heads else gettext("removed")]
        )
    rings = [_ring(curve, dim, curve.size, "attention", "") for curve in shared if kept_heads]
    wide = figure.axes_of(2)
    for place, (label, colour, dash, width) in WIDE_CURVES.items():
        name = translate(label)
        curve_of_place: Curve | None = getattr(curves, place)
        if curve_of_place is None:
            continue
        line = {"color": f"@{colour}", "width": width, "dash": dash}
        data.append({**_curve(curve_of_place, name, 1), "name": name, "line": line, **wide})
        kept, otherwise = (view.neurons, gettext("removed")) if place == "mlp" else (view.width, "–")
        if kept:
            rings.append(_ring(curve_of_place, kept, 1, colour, "2"))
        rows.append([name, *_sizes(curve_of_place), str(kept or otherwise)])
    if not any(getattr(curves, place) for place in WIDE_CURVES):
        # plotly does not draw axes without a trace, and misplaces their annotations
        data.append({"type": "scatter", "x": [None], "y": [None], "showlegend": False, **wide})
    layout["hovermode"] = "closest"
    layout["xaxis"].update(
        title=figure.title(gettext("axes of the head")), range=[0, AXIS_MARGIN * view.dim], dtick=_round_step(view.dim)
    )
    layout["xaxis2"].update(
        title=figure.title(gettext("fraction of all axes")), tickformat=".0%", range=[0, AXIS_MARGIN]
    )
    for mark in ("", "2"):
        layout[f"yaxis{mark}"].update(tickformat=".0%", range=[0, 1.05], dtick=0.25)
    layout["yaxis"]["title"] = figure.title(gettext("explained variance"))
    layout["shapes"] = [
        {**figure.removed_region({"xaxis": "x", "yaxis": "y"}, dim if kept_heads else 0), "x1": view.dim},
        *rings,
    ]
    heads = neurons = gettext("the whole module is removed")
    if kept_heads:
        heads = gettext(
            "{heads} of {heads_dense} heads kept,<br>{dim} of {dim_dense} channels in each",
            heads=len(kept_heads),
            heads_dense=len(curves.heads),
            dim=dim,
            dim_dense=view.dim,
        )
    if view.neurons and curves.mlp:
        neurons = gettext("{neurons:,} of {dense:,} neurons kept", neurons=view.neurons, dense=curves.mlp.size)
    elif view.neurons:
        neurons = gettext("follows in a moment")
    if view.width and curves.residual:
        axes = curves.residual.size
        neurons += gettext("<br>cross-module: {width:,} of {axes:,} axes", width=view.width, axes=axes)
    layout["annotations"] = [
        _inside("", gettext("Attention"), heads),
        _inside("2", gettext("MLP and residual stream"), neurons),
    ]
    return Chart(
        title=TITLES["variance"](layer),
        note=gettext(
            "How few directions does the layer use? Fraction of the variance that the first principal axes "
            "explain. Rings mark how many axes, or neurons of the MLP, are kept; shading marks what is removed."
        ),
        protocol=formatting.provenance(view.source),
        data=data,
        layout=layout,
        columns=[gettext("Activation"), gettext("Axes"), gettext("Axes for 95%"), gettext("Kept")],
        rows=rows,
        side_by_side=True,
    )


def _curve(curve: Curve, name: str, scale: int) -> Json:
    hover = (
        gettext("{name}: %{{x:.0f}} axes explain %{{y:.1%}}", name=name)
        if scale > 1
        else gettext("{name}: %{{x:.0%}} of the axes explain %{{y:.1%}}", name=name)
    )
    return {
        "type": "scatter",
        "mode": "lines",
        "x": [0, *(figure.rounded(rank * scale / curve.size) for rank in curve.ranks)],
        "y": [0, *map(figure.rounded, curve.explained)],
        "hovertemplate": hover + "<extra></extra>",
    }


def _sizes(curve: Curve) -> tuple[str, str]:
    return str(curve.size), str(curve.effective_rank)


def _ring(curve: Curve, rank: int, scale: int, colour: str, axis: str) -> Json:
    """Marks the kept rank on a curve. A shape rather than a trace: it moves with the slider, the curves do not."""
    return {
        "type": "circle",
        "name": figure.SETTING_SHAPE,
        "xref": f"x{axis}",
        "yref": f"y{axis}",
        "xsizemode": "pixel",
        "ysizemode": "pixel",
        "xanchor": rank * scale / curve.size,
        "yanchor": figure.rounded(curve.at(rank)),
        "x0": -5,
        "x1": 5,
        "y0": -5,
        "y1": 5,
        "fillcolor": "@page",
        "line": {"color": f"@{colour}", "width": 2.2},
    }


def _inside(axis: str, name: str, text: str) -> Json:
    """Text at the lower right of a panel, which cumulative curves leave empty."""
    place = (f"x{axis} domain", 0.97), (f"y{axis} domain", 0.05)
    return figure.annotation(f"<b>{name}</b><br>{text}", *place, ("right", "bottom"), "@ink", 13, align="right")


def _round_step(size: int) -> int:
    return max(1, 2 ** (size.bit_length() - 3))
