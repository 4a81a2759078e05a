"""The Python side of the chart component: a `gr.HTML` with one plotly chart that is redrawn in place.

`gr.Plot` creates its chart anew for every value. This component keeps its div: its value is the JSON of a
`figure.Chart`, which `assets/chart.js` passes to `Plotly.react`. A click on a layer triggers the event `select`, whose
`gr.EventData` has the attribute `layer`. The property `overlay` (`pinned/overlay.py`) is independent of the value.
plotly.js is the file of the installed plotly package: no CDN.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import gradio as gr
import plotly

from ..i18n.language import LazyString, gettext
from .pinned.overlay import overlay
from .scripts import on_load

PLOTLY = Path(plotly.__file__).parent / "package_data" / "plotly.min.js"

CARD = "isx-card"


def plotly_head() -> str:
    """A tag that fetches plotly.js, which `server.app.App` serves, for the first chart; for `launch(head=...)`.

    A browser says in its console that the file was not used, if the page is opened on a tab without charts.
    """
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
