"""A chart's overlay: the traces and shapes of the pinned setting A, drawn faintly with those of the current one. Pure.

Charts mark what depends on the settings: traces by `meta`, shapes by their name. An overlay is sent when a setting
is pinned, and stays in the browser while the slider moves (`assets/chart.js` adds it to each figure).
"""

from __future__ import annotations

import json

from ...i18n.language import gettext, lazy_gettext, translate
from ..figure import SETTING_SHAPE, Json

TRANSPARENT = "rgba(0,0,0,0)"
WIDTH = 1.2  # pixels
KINDS = {  # names of what is drawn, for the chart's caption
    "bar": lazy_gettext("outlines"),
    "markers": lazy_gettext("circles"),
    "lines": lazy_gettext("thin lines"),
    "circle": lazy_gettext("hollow rings"),
    "line": lazy_gettext("dotted lines"),
}


def overlay(chart: str) -> str:
    """The overlay (JSON) of a chart (JSON); empty if nothing on the chart depends on the settings."""
    content = json.loads(chart)
    if drawing := content.get("drawing"):
        edges = {"data": [], "kinds": [gettext("dashed edges")], "rows": content["table"]["rows"], "drawing": drawing}
        return json.dumps(edges, separators=(",", ":")) if drawing["kind"] == "map" else ""
    visible = [trace for trace in content["data"] if trace.get("visible", True) is True]  # not only in the legend
    traces = [trace for trace in visible if "overlay" in trace.get("meta", ()) and trace["x"]]
    shapes = [shape for shape in content["layout"].get("shapes", ()) if shape.get("name") == SETTING_SHAPE]
    if not traces and not shapes:
        return ""
    drawn = {"data": [_faint(trace) for trace in traces], "shapes": [_outline(shape) for shape in shapes]}
    kinds = [translate(KINDS["circle" if shape["type"] == "circle" else "line"]) for shape in shapes]
    return json.dumps({**drawn, "kinds": kinds, "rows": content["table"]["rows"]}, separators=(",", ":"))


def _faint(trace: Json) -> Json:
    """A trace with bars as outlines, curves thin, markers hollow; its `meta` names the kind."""
    kind = translate(KINDS[trace["type"] if trace["type"] == "bar" else trace["mode"].split("+")[0]])
    labels: Json = {"hovertemplate": f"A: {trace['hovertemplate']}"} if "hovertemplate" in trace else {}
    labels |= {"name": f"A: {trace['name']}", "meta": {**trace["meta"], "kind": kind}}
    trace = {**trace, "showlegend": False, **labels}
    if trace["type"] == "bar":
        return trace | {"marker": {"color": TRANSPARENT, "line": {"color": "@ink", "width": WIDTH}}}
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
    """A shape as a hollow, wider ring, or as a dotted line: of a region, its edge."""
    line = {"color": shape["line"].get("color", "@ink"), "width": WIDTH}
    if shape["type"] == "circle":
        wider = {end: shape[end] * 1.7 for end in ("x0", "x1", "y0", "y1")}
        return {**shape, **wider, "fillcolor": TRANSPARENT, "line": line}
    edge = {"type": "line", "x1": shape["x0"], "layer": "above"} if shape["type"] == "rect" else {}
    return {**shape, **edge, "line": {**line, "dash": "2px,3px"}}
