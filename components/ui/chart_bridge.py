"""The Python side of the chart component: a `gr.HTML` with one plotly chart that is redrawn in place.

`gr.Plot` creates its chart anew for every value. This component keeps its div: its value is the JSON of a
`figure.Chart`, which `assets/chart.js` passes to `Plotly.react`. A click on a layer triggers the event `select`, whose
`gr.EventData` has the attribute `layer`. plotly.js is the file of the installed plotly package: no CDN.

The property `overlay` has the traces and shapes of the pinned setting A that depend on settings (by `meta` and name).
It is sent when a setting is pinned, and `assets/chart.js` adds it, faintly, to each figure.
"""

import json
from pathlib import Path
from typing import Any

import gradio as gr
import plotly

from ..i18n.language import LazyString, gettext, lazy_gettext, translate
from .figure import SETTING_SHAPE, Json
from .scripts import on_load

PLOTLY = Path(plotly.__file__).parent / "package_data" / "plotly.min.js"

CARD = "isx-card"
TRANSPARENT = "rgba(0,0,0,0)"
WIDTH = 1.2  # pixels
KINDS = {  # names of what is drawn, for the chart's caption
    "bar": lazy_gettext("outlines"),
    "markers": lazy_gettext("circles"),
    "lines": lazy_gettext("thin lines"),
    "circle": lazy_gettext("hollow rings"),
    "line": lazy_gettext("dotted lines"),
}


def plotly_head() -> str:
    """A tag for `launch(head=...)` that fetches plotly.js, which `server.app.App` serves, before the first chart."""
    return f'<link rel="preload" href="{PLOTLY.name}" as="script">'


def chart(first: str = "", *, height: int = 400, elem_id: str, table: bool = False) -> gr.HTML:
    """A chart component. Its value is `Chart.to_json()`; `first` is the initial one. `table` opens its data table."""
    return gr.HTML(
        value=first,
        html_template=LazyString(lambda: template(height, table)),
        js_on_load=on_load("chart"),
        elem_id=elem_id,
        elem_classes=CARD,
        apply_default_css=False,
        overlay="",
    )


def template(height: int, table: bool = False) -> str:
    """The HTML of a chart without content; `table` opens its data table."""
    return f"""
<figure class="isx-chart">
  <figcaption><h3 class="isx-title"></h3><p class="isx-note"></p></figcaption>
  <div class="isx-plot" role="application" tabindex="-1" style="height:{height}px"></div>
  <div class="isx-under">
    <details class="isx-twin"{" open" if table else ""}><summary>{gettext("Data table")}</summary>
      <div class="isx-scroll" tabindex="0" role="region" aria-label="{gettext("The chart's data")}">
        <table><thead class="isx-head"></thead><tbody class="isx-rows"></tbody></table></div></details>
    <button type="button" class="isx-png">{gettext("Save PNG")}</button>
  </div>
</figure>
"""


def is_chart(component: gr.components.Component) -> bool:
    """Whether a component was created by `chart`."""
    return CARD in (component.elem_classes or ())


def overlay_update(value: object) -> dict[str, Any]:
    """The update that sets a chart's overlay to the pinned setting's chart (JSON), or removes it."""
    return gr.update(overlay=overlay(value) if isinstance(value, str) and value else "")


def overlay(chart: str) -> str:
    """The overlay (JSON) of a chart (JSON); empty if nothing on the chart depends on the settings."""
    content = json.loads(chart)
    if drawing := content.get("drawing"):
        marks = {"map": [gettext("dashed edges")], "facts": []}.get(drawing["kind"])  # an opened layer is not compared
        edges = {"data": [], "kinds": marks, "rows": content["table"]["rows"], "drawing": drawing}
        return "" if marks is None else json.dumps(edges, separators=(",", ":"))
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
