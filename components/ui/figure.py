"""Building blocks of all charts: `Figure` collects panels, curves, bars and marks, and makes a `Chart`. No gradio.

Figures are plain dicts in plotly's JSON format: constructing `go.Figure` objects is too slow for the slider. The tests
validate every figure with plotly. Colours are `"@name"` of `palette.py`.
"""

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any

from ..i18n.language import ENGLISH, gettext, language, number, separators, translate
from .palette import DASHES

Json = dict[str, Any]
Table = tuple[Sequence[str], Sequence[Sequence[str]]]  # columns and rows

# Marks of what depends on the settings, and is therefore in the overlay of the pinned setting (`chart_bridge.py`).
SETTING_SHAPE = "follows-the-setting"  # the name of a shape
OVERLAY_ALWAYS = {"overlay": "always"}  # the meta of a trace
OVERLAY_IF_DIFFERENT = {"overlay": "different"}  # the meta of a trace that is only overlaid if the curves differ


@dataclass(frozen=True)
class Chart:
    """A figure with its title, and its numbers as a data table.

    `note` says what is drawn, `hint` what a click does, `protocol` how the numbers were measured. `layers` is the
    number of layers along the x axis if a click chooses a layer, else 0. If points can be picked, `picks` has a name
    for each row of the table: a click on a point sends its id, a click on a row sends its name.
    """

    title: str
    note: str
    columns: Sequence[str]
    rows: Sequence[Sequence[str]]
    data: list[Json] = field(default_factory=list)
    layout: Json = field(default_factory=dict)
    layers: int = 0
    selected: int = 0
    side_by_side: bool = False  # panels are next to each other; a narrow screen stacks them
    picks: Sequence[str] = ()
    hint: str = ""
    protocol: str = ""
    drawing: Json | None = None  # what `assets/anatomy.js` or `facts.js` draws; plotly draws nothing then

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
            **({"drawing": self.drawing} if self.drawing else {}),
        }

    def to_json(self) -> str:
        """`plain` as one string."""
        return json.dumps(self.plain(), separators=(",", ":"))


class Figure:
    """A chart in the making: panels, counted from 1, stacked or side by side.

    The reader's zoom is kept as long as `revision` is the same. `shapes` and `annotations` are parts of the layout.
    """

    def __init__(self, panels: int, revision: str, side_by_side: bool = False, hovermode: str = "x") -> None:
        self.data: list[Json] = []
        self.shapes: list[Json] = []
        self.annotations: list[Json] = []
        marks = {"shapes": self.shapes, "annotations": self.annotations}
        self.layout = _layout(panels, side_by_side) | {"hovermode": hovermode, "uirevision": revision} | marks
        self._panels = panels
        self._more: Json = {"side_by_side": side_by_side}  # fields of the chart

    def x_axis(self, panel: int, title: str | None = None, **options: Any) -> None:
        """Set the title and plotly's options of a panel's x axis."""
        self._axis(f"xaxis{suffix(panel)}", title, options)

    def y_axis(self, panel: int, title: str | None = None, **options: Any) -> None:
        """Set the title and plotly's options of a panel's y axis."""
        self._axis(f"yaxis{suffix(panel)}", title, options)

    def _axis(self, name: str, title: str | None, options: Json) -> None:
        if title is not None:
            options["title"] = {"text": title, "font": {"color": "@quiet", "size": 13}, "standoff": 8}
        self.layout[name].update(options)

    def over_layers(self, layers: int, selected: int) -> None:
        """Give stacked panels one axis over the layers, on which a click chooses one; a band marks the `selected`."""
        span = [-0.6, max(layers, 1) - 0.4]
        for panel in range(1, self._panels):
            self.x_axis(panel, range=span, matches=f"x{suffix(self._panels)}", showticklabels=False)
        self.x_axis(self._panels, gettext("layer"), range=span, dtick=step(layers))
        self.shapes += [band(selected)] if layers else []
        self._more |= {"layers": layers, "selected": selected, "hint": gettext("Click a layer.") if layers else ""}

    def curve(
        self, panel: int, name: str, y: Sequence[float], hover: str = "", x: Sequence[float] | None = None, **more: Any
    ) -> None:
        """Add a line over `x`, by default the layers; `nan` leaves a gap. The first panel's are in the legend.

        Without `hover` no label appears at its points. `more` are further properties of plotly's trace.
        """
        self._trace(panel, name, y, hover, x, {"type": "scatter", "mode": "lines", "showlegend": panel == 1, **more})

    def bars(self, panel: int, name: str, y: Sequence[float], hover: str, colour: str, **more: Any) -> None:
        """Add a bar for each layer. `more` are further properties of plotly's trace."""
        marker = {"color": f"@{colour}", "line": {"width": 0}}
        self.layout["bargap"] = 0.28
        self._trace(panel, name, y, hover, None, {"type": "bar", "marker": marker, "showlegend": False, **more})

    def _trace(
        self, panel: int, name: str, y: Sequence[float], hover: str, x: Sequence[float] | None, more: Json
    ) -> None:
        trace = {
            "name": name,
            "x": list(range(len(y)) if x is None else x),
            "y": [None if math.isnan(value) else rounded(value) for value in y],
            **({"hovertemplate": f"{hover}<extra></extra>"} if hover else {"hoverinfo": "skip"}),
            **axes_of(panel),
        }
        self.data.append(trace | more)

    def wait(self, message: str) -> None:
        """Leave all axes without numbers, since nothing is measured yet; a message in the middle says what will be."""
        middle = ("paper", 0.5)
        self.annotations.append(annotation(message, middle, middle, ("center", "middle"), "@quiet", 14))
        for name, axis in self.layout.items():
            if name[1:5] == "axis":
                axis.update(showticklabels=False, range=[0, 1])

    def heading(self, panel: int, text: str) -> None:
        """Add a panel's title, above its left end."""
        place = (f"x{suffix(panel)} domain", 0), (f"y{suffix(panel)} domain", 1.02)
        self.annotations.append(annotation(text, *place, ("left", "bottom"), "@ink", 13))

    def chart(self, title: str, note: str, numbers: Table | Mapping[str, Iterable[str]], **more: Any) -> Chart:
        """The chart with its texts and its data table, or the table's columns; `more` are further fields of `Chart`."""
        columns, rows = numbers if isinstance(numbers, tuple) else table(numbers)
        return Chart(title, note, columns, rows, self.data, self.layout, **self._more, **more)


def table(columns: Mapping[str, Iterable[str]]) -> Table:
    """A data table from its columns."""
    return list(columns), [list(row) for row in zip(*columns.values(), strict=True)]


def cell(value: float | None, code: str) -> str:
    """A number in a data table; a dash for None and nan."""
    return "–" if value is None or math.isnan(value) else number(value, code)


@lru_cache(maxsize=100_000)  # importances stay as they are when the slider moves
def rounded(value: float) -> float:
    """Rounds to five significant digits, to keep the JSON small."""
    return float(f"{value:.5g}")


def line(name: str, width: float) -> Json:
    """A line in a colour of `palette.py`, with that colour's dash."""
    return {"color": f"@{name}", "width": width, "dash": DASHES.get(name, "solid")}


def suffix(index: int) -> str:
    """Plotly's suffix of `xaxis` and `yaxis` for a panel, counted from 1."""
    return "" if index == 1 else str(index)


def axes_of(panel: int) -> Json:
    """The names of the axes of a panel, counted from 1."""
    return {"xaxis": f"x{suffix(panel)}", "yaxis": f"y{suffix(panel)}"}


def band(selected: int) -> Json:
    """The shaded band behind the selected layer; `assets/chart.js` finds it by its name and moves it."""
    return _shaded("selected-layer", "x2", (selected - 0.5, selected + 0.5), "paper")


def removed_region(panel: int, start: float, end: float = 1) -> Json:
    """The shaded region of removed units: from `start` to `end` along the x axis, over a panel's whole height."""
    return _shaded(SETTING_SHAPE, f"x{suffix(panel)}", (start, end), f"y{suffix(panel)} domain")


def across(panel: int, height: float, line: Json, **more: Any) -> Json:
    """A horizontal line across a panel."""
    return _shape("line", f"x{suffix(panel)} domain", (0, 1), f"y{suffix(panel)}", (height, height), line, **more)


def upright(panel: int, at: float, line: Json) -> Json:
    """A vertical line over a panel's whole height."""
    return _shape("line", f"x{suffix(panel)}", (at, at), f"y{suffix(panel)} domain", (0, 1), line)


def _shaded(name: str, xref: str, x: tuple[float, float], yref: str) -> Json:
    return _shape("rect", xref, x, yref, (0, 1), {"width": 0}, name=name, layer="below", fillcolor="@band")


def _shape(
    kind: str, xref: str, x: tuple[float, float], yref: str, y: tuple[float, float], line: Json, **more: Any
) -> Json:
    ends = {"x0": x[0], "x1": x[1], "y0": y[0], "y1": y[1]}
    return {"type": kind, "xref": xref, "yref": yref, **ends, "line": line, **more}


def annotation(
    text: str, x: tuple[str, float], y: tuple[str, float], anchors: tuple[str, str], color: str, size: int, **more: Any
) -> Json:
    """A text at a place: a reference and a value in x and in y; `anchors` says which of its sides are there."""
    place = {"xref": x[0], "yref": y[0], "x": x[1], "y": y[1], "xanchor": anchors[0], "yanchor": anchors[1]}
    return {"text": text, **place, "showarrow": False, "font": {"color": color, "size": size}, **more}


def error_bars(colour: str, errors: Sequence[float]) -> Json:
    """Standard errors of a curve's points."""
    array = [rounded(error) for error in errors]
    return {"type": "data", "array": array, "color": f"@{colour}", "thickness": 0.8, "width": 0}


def step(count: int) -> int:
    """The step between the ticks of an axis over `count` layers or heads."""
    return 1 if count <= 16 else 2 if count <= 24 else 5


def waiting(title: str, message: str) -> Chart:
    """A chart with empty axes and a message that says what it waits for."""
    figure = Figure(1, "waiting")
    figure.wait(message)
    figure.y_axis(1, showgrid=False)
    return figure.chart(title, "", {gettext("Numbers"): [gettext("none yet")]})


def _layout(panels: int, side_by_side: bool) -> Json:
    """The layout of `panels` plots."""
    clear, quiet = "rgba(0,0,0,0)", {"color": "@quiet", "size": 12}
    axis = {"gridcolor": "@grid", "linecolor": "@rule", "zeroline": False, "ticks": "", "fixedrange": False}
    axis |= {"tickfont": quiet, "automargin": True}
    legend = {"orientation": "h", "x": 0, "y": 1.01, "xanchor": "left", "yanchor": "bottom"}
    family = "system-ui, -apple-system, 'Segoe UI', Roboto, 'Noto Sans', sans-serif"
    layout: Json = {
        "paper_bgcolor": clear,
        "plot_bgcolor": clear,
        "font": {"family": family, "size": 13, "color": "@ink"},
        "margin": {"l": 56, "r": 12, "t": 34, "b": 44},
        "dragmode": "zoom",
        "showlegend": True,
        "legend": {**legend, "font": quiet, "bgcolor": clear},
        "hoverlabel": {"bgcolor": "@panel", "bordercolor": "@rule", "font": {"color": "@ink", "size": 12}},
    }
    if language() != ENGLISH:
        layout["separators"] = separators()
    gap = 0.14 if side_by_side else 0.09
    length = (1 - gap * (panels - 1)) / panels  # of a panel, as a fraction of the figure
    for index in range(1, panels + 1):
        start = (index - 1) * (length + gap)
        domain = [round(max(0.0, start), 4), round(min(1.0, start + length), 4)]
        from_above = [round(1 - domain[1], 4), round(1 - domain[0], 4)]
        panel = suffix(index)
        layout[f"xaxis{panel}"] = {**axis, "showgrid": False, "anchor": f"y{panel}"}
        layout[f"yaxis{panel}"] = {**axis, "anchor": f"x{panel}"}
        layout[f"{'x' if side_by_side else 'y'}axis{panel}"]["domain"] = domain if side_by_side else from_above
    return layout
