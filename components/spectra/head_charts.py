"""The charts of the Spectra tab that show all heads: their effective ranks, and their rotary pairs. Pure."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from ..i18n.language import gettext, number, percentage
from ..ui import figure, formatting
from ..ui.figure import Chart, Json
from .charts import TITLES
from .views import SpectraView

COLOUR_TICKS = {-3: 0.1, -2: 1, -1: 10, -0.5: None}  # per cent of a head's energy, by the logarithm of the fraction


def rank_chart(view: SpectraView) -> Chart:
    """Layer x head: the number of axes that explain 95 % of the head's output; crosses mark removed heads."""
    layers, heads = len(view.ranks), len(view.ranks[0])
    layout = figure.layout_of(1, revision=f"ranks-{layers}-{heads}")
    removed = [(layer, head) for layer in range(layers) for head in range(heads) if head not in view.heads[layer]]
    data = [
        {
            **_heatmap(
                [list(row) for row in zip(*view.ranks, strict=True)],
                {0: "0", view.dim: gettext("{count} axes", count=view.dim)},
            ),
            "x": list(range(layers)),
            "y": list(range(heads)),
            "hovertemplate": gettext(
                "<b>layer %{{x}}, head %{{y}}</b><br>%{{z}} of {count} axes explain 95% of its output", count=view.dim
            )
            + "<extra></extra>",
        },
        _crosses(removed, gettext("head removed")),
    ]
    layout["hovermode"] = "closest"
    layout["xaxis"].update(title=figure.title(gettext("layer")), range=[-0.5, layers - 0.5], dtick=figure.step(layers))
    layout["yaxis"].update(
        title=figure.title(gettext("query head")), range=[heads - 0.5, -0.5], dtick=figure.step(heads), showgrid=False
    )
    layout["shapes"] = [_frame(view.layer)]
    return Chart(
        title=TITLES["ranks"](view.layer),
        note=gettext(
            "How many axes does each head need? Number of principal axes, of {count}, that explain 95% of the "
            "head's output. × marks heads that are removed.",
            count=view.dim,
        ),
        hint=gettext("Click a layer."),
        protocol=formatting.provenance(view.source),
        data=data,
        layout=layout,
        columns=[
            gettext("Layer"),
            *(gettext("Head {head}", head=head) for head in range(heads)),
            *(gettext("Heads removed"), gettext("Channels kept")),
        ],
        rows=[
            [
                str(layer),
                *map(str, row),
                ", ".join(str(head) for head in range(heads) if head not in view.heads[layer]) or gettext("none"),
                str(view.dims[layer] if view.heads[layer] else 0),
            ]
            for layer, row in enumerate(view.ranks)
        ],
        layers=layers,
        selected=view.layer,
    )


def pair_chart(view: SpectraView) -> Chart:
    """Key head x rotary pair, fastest first: the energy of queries times keys per pair; crosses mark removed pairs."""
    pairs = view.pairs
    heads, count = len(pairs.energy), len(pairs.angles)
    layout = figure.layout_of(1, revision=f"pairs-{heads}-{count}")
    turns = [2 * math.pi / angle for angle in pairs.angles]
    fractions = [[value / max(sum(row), 1e-30) for value in row] for row in pairs.energy]
    removed = [(pair, head) for head in range(heads) for pair in range(count) if not pairs.kept[head][pair]]
    colour_ticks = {power: "" if percent is None else percentage(percent) for power, percent in COLOUR_TICKS.items()}
    data = [
        {
            **_heatmap([[math.log10(max(fraction, 1e-6)) for fraction in row] for row in fractions], colour_ticks),
            "x": list(range(count)),
            "y": list(range(heads)),
            "customdata": [
                [[number(fraction, ".1%"), _tokens(turn)] for fraction, turn in zip(row, turns, strict=True)]
                for row in fractions
            ],
            "hovertemplate": gettext(
                "<b>key head %{{y}}, pair %{{x}}</b><br>contributes %{{customdata[0]}} of the head's "
                "scores<br>a full turn takes %{{customdata[1]}} tokens"
            )
            + "<extra></extra>",
        },
        _crosses(removed, gettext("pair removed")),
    ]
    layout["hovermode"] = "closest"

    def nearest(tokens: int) -> int:
        return min(range(count), key=lambda pair: abs(math.log(turns[pair] / tokens)))

    ticks = {nearest(10**power): 10**power for power in range(1, 8) if turns[-1] >= 10**power}
    layout["xaxis"].update(
        title=figure.title(gettext("tokens for a full turn")),
        range=[-0.5, count - 0.5],
        tickvals=list(ticks),
        ticktext=[_tokens(turn) for turn in ticks.values()],
    )
    layout["yaxis"].update(
        title=figure.title(gettext("key head")), range=[heads - 0.5, -0.5], dtick=figure.step(heads), showgrid=False
    )
    kept_unrotated, all_unrotated = pairs.unrotated
    unrotated = (
        gettext(
            " {still} of {loose} channels without rotation are kept as well.", still=kept_unrotated, loose=all_unrotated
        )
        if all_unrotated
        else ""
    )
    kept = max(map(sum, pairs.kept))
    kept_pairs = (
        gettext("each kept key head keeps {kept} of {count}", kept=kept, count=count)
        if kept
        else gettext("no key head is kept")
    )
    return Chart(
        title=TITLES["pairs"](view.layer),
        note=gettext(
            "Which rotary pairs contribute most to the attention scores? The chart shows the mean absolute "
            "contribution of each pair, as a fraction of the sum over the pairs of its key head. Pairs marked × are "
            "removed: those to which the loss is least sensitive; "
            "{stay}.{unrotated}",
            stay=kept_pairs,
            unrotated=unrotated,
        ),
        data=data,
        layout=layout,
        columns=[
            gettext("Pair"),
            gettext("Tokens per turn"),
            *(gettext("Key head {head}", head=head) for head in range(heads)),
        ],
        rows=[
            [
                str(pair),
                _tokens(turns[pair]),
                *(_carried(fractions[head][pair], pairs.kept[head][pair]) for head in range(heads)),
            ]
            for pair in range(count)
        ],
    )


def _heatmap(values: Sequence[Sequence[float]], ticks: Mapping[float, str]) -> Json:
    """Shades from the first of the ticks (value to label) to the last one."""
    return {
        "type": "heatmap",
        "z": values,
        "zmin": min(ticks),
        "zmax": max(ticks),
        "colorscale": [[0, "@panel"], [1, "@intraslice"]],
        "xgap": 1,
        "ygap": 1,
        "colorbar": {
            "orientation": "h",
            "x": 1,
            "xanchor": "right",
            "y": 1,
            "yanchor": "bottom",
            "xpad": 20,
            "ypad": 4,
            "len": 0.4,
            "tickangle": 0,
            "thickness": 8,
            "outlinewidth": 0,
            "tickfont": {"color": "@quiet", "size": 11},
            "tickvals": list(ticks),
            "ticktext": list(ticks.values()),
        },
    }


def _crosses(points: Sequence[tuple[int, int]], name: str) -> Json:
    return {
        "type": "scatter",
        "mode": "markers",
        "name": name,
        "meta": figure.GHOST_ALWAYS,
        "x": [x for x, _ in points],
        "y": [y for _, y in points],
        "marker": {"symbol": "x-thin", "size": 8, "color": "@ink", "line": {"color": "@ink", "width": 1.5}},
        "hoverinfo": "skip",
        "showlegend": False,
    }


def _frame(layer: int) -> Json:
    # A heatmap hides a fill below it, so the chosen layer gets an outline.
    band = {**figure.band(layer), "xref": "x", "layer": "above", "fillcolor": "rgba(0,0,0,0)"}
    return {**band, "line": {"width": 2, "color": "@ink"}}


def _carried(fraction: float, is_kept: bool) -> str:
    return number(fraction, ".1%") if is_kept else gettext("{share:.1%}, removed", share=fraction)


def _tokens(count: float) -> str:
    if count < 1e4:
        return number(count, ",.0f")
    return number(count / 1e3, ",.0f") + "k" if count < 1e6 else number(count / 1e6, ",.0f") + "M"
