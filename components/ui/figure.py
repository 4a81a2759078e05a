"""Building blocks of all figures: the `Chart` itself, axes, lines, bands and labels. Pure; imports no gradio.

Figures are plain dicts in plotly's JSON format: constructing `go.Figure` objects is too slow for the slider. The tests
validate every figure with plotly. Colours are `"@name"` of `palette.py`.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from ..i18n.language import ENGLISH, gettext, language, separators, translate
from .palette import DASHES

Json = dict[str, Any]

POINTS = 160  # of a curve; more cannot be told apart on a screen
# Marks of what depends on the settings, and therefore has a ghost (`pinned/ghost.py`).
SETTING_SHAPE = "follows-the-setting"  # the name of a shape
GHOST_ALWAYS = {"ghost": "always"}  # the meta of a trace
GHOST_IF_DIFFERENT = {"ghost": "different"}  # the meta of a trace whose ghost is only drawn if the curves differ


@dataclass(frozen=True)
class Chart:
    """A figure with its title, and its numbers as a data table.

    `note` says what is drawn, `hint` what a click does, `protocol` how the numbers were measured. `layers` is the
    number of layers along the x axis if a click chooses a layer, else 0. If points can be picked, `picks` has a name
    for each row of the table: a click on a point sends its id, a click on a row sends its name.
    """

    title: str
    note: str
    data: list[Json]
    layout: Json
    columns: Sequence[str]
    rows: Sequence[Sequence[str]]
    layers: int = 0
    selected: int = 0
    side_by_side: bool = False  # panels are next to each other; a narrow screen stacks them
    picks: Sequence[str] = ()
    hint: str = ""
    protocol: str = ""

    def caption(self, clickable: bool = True) -> str:
        """The text below the title; without `clickable` it leaves the hint out."""
        parts = (self.note, self.hint if clickable else "", self.protocol)
        return " ".join(translate(part) for part in parts if part)

    def plain(self) -> Json:
        """The chart as `assets/chart.js` reads it."""
        return {
            "title": self.title,
            "note": self.caption(),
            "protocol": translate(self.protocol),
            "data": self.data,
            "layout": self.layout,
            "table": {"columns": list(self.columns), "rows": [list(row) for row in self.rows]},
            "layers": self.layers,
            "selected": self.selected,
            "side_by_side": self.side_by_side,
            "picks": list(self.picks),
        }

    def to_json(self) -> str:
        """`plain` as one string."""
        return json.dumps(self.plain(), separators=(",", ":"))


def rounded(value: float) -> float:
    """Rounds to five significant digits, to keep the JSON small."""
    return float(f"{value:.5g}")


def line(name: str, width: float) -> Json:
    """A line in a colour of `palette.py`, with that colour's dash."""
    return {"color": f"@{name}", "width": width, "dash": DASHES.get(name, "solid")}


def suffix(index: int) -> str:
    """Plotly's suffix of `xaxis` and `yaxis` for a panel, counted from 1."""
    return "" if index == 1 else str(index)


def axes_of(row: int) -> Json:
    """The names of the axes of a panel, counted from 1."""
    return {"xaxis": f"x{suffix(row)}", "yaxis": f"y{suffix(row)}"}


def thinned(values: Sequence[float]) -> tuple[list[float], list[float]]:
    """At most `POINTS` evenly spaced points of a curve: (fractions of its length, values)."""
    size = len(values)
    if size == 0:
        return [], []
    steps = min(size, POINTS)
    indices = [round(step * (size - 1) / max(steps - 1, 1)) for step in range(steps)]
    return [rounded((index + 1) / size) for index in indices], [rounded(values[index]) for index in indices]


def band(selected: int) -> Json:
    """The shaded band behind the selected layer; `assets/chart.js` finds it by its name and moves it."""
    return _shaded("selected-layer", "x2", (selected - 0.5, selected + 0.5), "paper")


def level(row: int, height: float) -> Json:
    """A faint dotted line across a panel."""
    return across(row, height, {"color": "@quiet", "width": 1, "dash": "2px,3px"})


def threshold_line(row: int, height: float) -> Json:
    """A strong dashed line across a panel."""
    return across(row, height, {"color": "@ink", "width": 1.4, "dash": "5px,3px"}) | {"name": SETTING_SHAPE}


def across(row: int, height: float, line: Json) -> Json:
    """A horizontal line across a panel."""
    return _shape("line", f"x{suffix(row)} domain", (0, 1), f"y{suffix(row)}", (height, height), line)


def upright(row: int, at: float, line: Json) -> Json:
    """A vertical line over a panel's whole height."""
    return _shape("line", f"x{suffix(row)}", (at, at), f"y{suffix(row)} domain", (0, 1), line)


def _shape(
    kind: str, xref: str, x: tuple[float, float], yref: str, y: tuple[float, float], line: Json, **more: Any
) -> Json:
    ends = {"x0": x[0], "x1": x[1], "y0": y[0], "y1": y[1]}
    return {"type": kind, "xref": xref, "yref": yref, **ends, "line": line, **more}


def _shaded(name: str, xref: str, x: tuple[float, float], yref: str) -> Json:
    return _shape("rect", xref, x, yref, (0, 1), {"width": 0}, name=name, layer="below", fillcolor="@band")


def removed_region(axes: Json, start: float) -> Json:
    """The shaded region of removed units: from `start` to 1 along the x axis, over a panel's whole height."""
    return _shaded(SETTING_SHAPE, axes["xaxis"], (start, 1), f"{axes['yaxis']} domain")


def label(row: int, x: float, y: float, text: str) -> Json:
    """A grey text that ends at `x` (a fraction of the panel's width), above `y` (a value)."""
    place = (f"x{suffix(row)} domain", x), (f"y{suffix(row)}", y)
    return annotation(text, *place, ("right", "bottom"), "@quiet", 12)


def annotation(
    text: str, x: tuple[str, float], y: tuple[str, float], anchors: tuple[str, str], color: str, size: int, **more: Any
) -> Json:
    """A text at a place: a reference and a value in x and in y; `anchors` says which of its sides are there."""
    place = {"xref": x[0], "yref": y[0], "x": x[1], "y": y[1], "xanchor": anchors[0], "yanchor": anchors[1]}
    return {"text": text, **place, "showarrow": False, "font": {"color": color, "size": size}, **more}


def layer_axes(layout: Json, panels: int, layers: int) -> None:
    """Give stacked panels one axis over the layers, with ticks below the last."""
    last = suffix(panels)
    span = [-0.6, max(layers, 1) - 0.4]
    for index in range(1, panels):
        layout[f"xaxis{suffix(index)}"].update(range=span, matches=f"x{last}", showticklabels=False)
    layout[f"xaxis{last}"].update(title=title(gettext("layer")), range=span, dtick=step(layers))


def error_bars(module: str, errors: Sequence[float]) -> Json:
    """Standard errors of a module's points."""
    array = [rounded(error) for error in errors]
    return {"type": "data", "array": array, "color": f"@{module}", "thickness": 0.8, "width": 0}


def step(count: int) -> int:
    """The step between the ticks of an axis over `count` layers or heads."""
    return 1 if count <= 16 else 2 if count <= 24 else 5


def waiting(title: str, message: str) -> Chart:
    """A chart with empty axes and a message that says what it waits for."""
    layout = layout_of(1, revision="waiting")
    middle = {"text": message, "xref": "paper", "yref": "paper", "x": 0.5, "y": 0.5, "showarrow": False}
    layout["annotations"] = [{**middle, "font": {"color": "@quiet", "size": 14}}]
    for name in ("xaxis", "yaxis"):
        layout[name].update(showticklabels=False, showgrid=False, range=[0, 1])
    return Chart(title, "", [], layout, [gettext("Numbers")], [[gettext("none yet")]])


def title(text: str) -> Json:
    """An axis' title."""
    return {"text": text, "font": {"color": "@quiet", "size": 13}, "standoff": 8}


def layout_of(panels: int, revision: str, vertical: bool = True) -> Json:
    """The layout of `panels` plots, stacked or side by side. The zoom is kept as long as `revision` is the same."""
    axis = {
        "gridcolor": "@grid",
        "linecolor": "@rule",
        "zeroline": False,
        "ticks": "",
        "fixedrange": False,
        "tickfont": {"color": "@quiet", "size": 12},
        "automargin": True,
    }
    layout: Json = {
        "paper_bgcolor": "rgba(0,0,0,0)",
        "plot_bgcolor": "rgba(0,0,0,0)",
        "font": {
            "family": "system-ui, -apple-system, 'Segoe UI', Roboto, 'Noto Sans', sans-serif",
            "size": 13,
            "color": "@ink",
        },
        "margin": {"l": 56, "r": 12, "t": 34, "b": 44},
        "hovermode": "x",
        "dragmode": "zoom",
        "showlegend": True,
        "legend": {
            "orientation": "h",
            "x": 0,
            "y": 1.01,
            "xanchor": "left",
            "yanchor": "bottom",
            "font": {"color": "@quiet", "size": 12},
            "bgcolor": "rgba(0,0,0,0)",
        },
        "hoverlabel": {"bgcolor": "@panel", "bordercolor": "@rule", "font": {"color": "@ink", "size": 12}},
        "uirevision": revision,
    }
    if language() != ENGLISH:
        layout["separators"] = separators()
    gap = 0.09 if vertical else 0.14
    length = (1 - gap * (panels - 1)) / panels  # of a panel, as a fraction of the figure
    for index in range(1, panels + 1):
        start = (index - 1) * (length + gap)
        domain = [round(max(0.0, start), 4), round(min(1.0, start + length), 4)]
        flipped = [round(1 - domain[1], 4), round(1 - domain[0], 4)]
        panel = suffix(index)
        layout[f"xaxis{panel}"] = {
            **axis,
            "showgrid": False,
            "anchor": f"y{panel}",
            **({} if vertical else {"domain": domain}),
        }
        layout[f"yaxis{panel}"] = {**axis, "anchor": f"x{panel}", **({"domain": flipped} if vertical else {})}
    return layout


def heading(text: str, axes: Json) -> Json:
    """A panel's title, above its left end."""
    place = (f"{axes['xaxis']} domain", 0), (f"{axes['yaxis']} domain", 1.02)
    return annotation(text, *place, ("left", "bottom"), "@ink", 13)
