"""A chart's ghost: what of it belongs to the pinned setting A, drawn so that another one can be drawn over it. Pure.

A chart names what follows the settings: traces by their `meta`, shapes by their name. A ghost is sent when something is
pinned, and stays in the browser while the slider moves (`assets/chart.js` adds it to whatever is drawn).
"""

from __future__ import annotations

import json

from components.i18n.language import lazy_gettext, translate
from components.ui.figure import FOLLOWS, Json

NOTHING = "rgba(0,0,0,0)"
WIDTH = 1.2  # pixels
KINDS = {  # what a reader sees of each
    "bar": lazy_gettext("outlines"),
    "markers": lazy_gettext("circles"),
    "lines": lazy_gettext("thin lines"),
    "circle": lazy_gettext("hollow rings"),
    "line": lazy_gettext("dotted lines"),
}


def ghost(chart: str) -> str:
    """The ghost of a chart as it is sent (JSON); nothing where nothing of it follows the settings."""
    sent = json.loads(chart)
    seen = [trace for trace in sent["data"] if trace.get("visible", True) is True]  # others wait in the legend
    traces = [trace for trace in seen if "ghost" in trace.get("meta", ()) and trace["x"]]
    shapes = [shape for shape in sent["layout"].get("shapes", ()) if shape.get("name") == FOLLOWS]
    if not traces and not shapes:
        return ""
    drawn = {"data": [_faint(trace) for trace in traces], "shapes": [_outline(shape) for shape in shapes]}
    said = [translate(KINDS["circle" if shape["type"] == "circle" else "line"]) for shape in shapes]
    return json.dumps({**drawn, "said": said, "rows": sent["table"]["rows"]}, separators=(",", ":"))


def _faint(trace: Json) -> Json:
    """Bars as outlines, curves thin, markers hollow; its `meta` says which."""
    said = translate(KINDS[trace["type"] if trace["type"] == "bar" else trace["mode"].split("+")[0]])
    told: Json = {"hovertemplate": f"A: {trace['hovertemplate']}"} if "hovertemplate" in trace else {}
    told |= {"name": f"A: {trace['name']}", "meta": {**trace["meta"], "said": said}}
    trace = {**trace, "showlegend": False, **told}
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
    line = {"color": shape["line"].get("color", "@ink"), "width": WIDTH}
    if shape["type"] == "circle":
        wider = {end: shape[end] * 1.7 for end in ("x0", "x1", "y0", "y1")}
        return {**shape, **wider, "fillcolor": NOTHING, "line": line}
    edge = {"type": "line", "x1": shape["x0"], "layer": "above"} if shape["type"] == "rect" else {}
    return {**shape, **edge, "line": {**line, "dash": "2px,3px"}}
