"""A chart's ghost: what of it belongs to the pinned setting A, drawn so that another one can be drawn over it. Pure.

A chart names what follows the settings: traces by their `meta`, shapes by their name. A ghost is sent when something is
pinned, and stays in the browser while the slider moves (`assets/chart.js` adds it to whatever is drawn).
"""

from __future__ import annotations

import json

from components.ui.figure import FOLLOWS, Json

NOTHING = "rgba(0,0,0,0)"
WIDTH = 1.2  # pixels
WORDS = {
    "bar": "outlines",
    "markers": "circles",
    "lines": "thin lines",
    "circle": "dotted rings",
    "line": "dotted lines",
}


def ghost(chart: str) -> str:
    """The ghost of a chart as it is sent (JSON); nothing where nothing of it follows the settings."""
    sent = json.loads(chart)
    traces = [
        trace for trace in sent["data"] if "ghost" in trace.get("meta", ()) and trace.get("visible", True) is True
    ]
    shapes = [shape for shape in sent["layout"].get("shapes", ()) if shape.get("name") == FOLLOWS]
    if not traces and not shapes:
        return ""
    kinds = [trace["type"] if trace["type"] == "bar" else trace["mode"].split("+")[0] for trace in traces]
    kinds += ["circle" if shape["type"] == "circle" else "line" for shape in shapes]
    words = " and ".join(dict.fromkeys(WORDS[kind] for kind in kinds))
    drawn = {"data": [_faint(trace) for trace in traces], "shapes": [_outline(shape) for shape in shapes]}
    note = f"{words.capitalize()}: the pinned setting A."
    return json.dumps({**drawn, "note": note, "rows": sent["table"]["rows"]}, separators=(",", ":"))


def _faint(trace: Json) -> Json:
    """Bars as outlines, curves thin, markers hollow."""
    name = f"A: {trace['name']}"
    told = {"hovertemplate": f"A: {trace['hovertemplate']}"} if "hovertemplate" in trace else {}
    trace = {**trace, "name": name, "showlegend": False, **told}
    if trace["type"] == "bar":
        return trace | {"marker": {"color": NOTHING, "line": {"color": "@ink", "width": WIDTH}}}
    if "markers" in trace["mode"]:
        size = trace.get("marker", {}).get("size", 6) + 3
        color = trace.get("line", {}).get("color", "@ink")
        hollow = {"symbol": "circle-open", "size": size, "color": color, "line": {"color": color, "width": WIDTH}}
        trace |= {"marker": hollow}
        trace.pop("error_y", None)
    if "line" in trace:
        trace |= {"line": {**trace["line"], "width": WIDTH}}
    return {key: value for key, value in trace.items() if not key.startswith("fill")}


def _outline(shape: Json) -> Json:
    """A ring hollow and wider, a line and a region's edge dotted."""
    color = shape["line"].get("color", "@ink")
    shape = {**shape, "fillcolor": NOTHING, "line": {"color": color, "width": WIDTH, "dash": "2px,3px"}}
    if shape["type"] == "circle":
        ends = {end: shape[end] * 1.7 for end in ("x0", "x1", "y0", "y1")}
        return shape | ends
    if shape["type"] == "rect":
        return shape | {"type": "line", "x1": shape["x0"], "layer": "above"}
    return shape
