"""The charts of the Spectra tab that show all heads: their effective ranks, and their rotary pairs. Pure."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from ..i18n.language import gettext, number, percentage
from ..ui import figure, formatting
from ..ui.figure import Chart, Figure
from .charts import TITLES
from .views import SpectraView

COLOUR_TICKS = {-3: 0.1, -2: 1, -1: 10, -0.5: None}  # per cent of a head's energy, by the logarithm of the fraction


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
        figure.table(
            {
                gettext("Layer"): map(str, layers),
                **{gettext("Head {head}", head=head): map(str, ranks) for head, ranks in enumerate(by_head)},
                gettext("Heads removed"): [", ".join(map(str, row)) or gettext("none") for row in removed],
                gettext("Channels kept"): map(str, kept),
            }
        ),
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
        figure.table(
            {
                gettext("Pair"): map(str, pairs),
                gettext("Tokens per turn"): map(_tokens, turns),
                **{
                    gettext("Key head {head}", head=head): map(_carried, fractions[head], is_kept[head])
                    for head in heads
                },
            }
        ),
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
    colorbar = {
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
    }
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
