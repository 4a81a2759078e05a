"""Python's half of the chart bridge: a `gr.HTML` that holds one plotly chart and redraws it in place.

`gr.Plot` throws its chart away at every new value; here the div stays, its value is the JSON of a `figure.Chart`, and
`assets/chart.js` hands it to `Plotly.react`. A click on a layer comes back as the event `select`, whose `gr.EventData`
has the attribute `layer`. Its property `ghost`, of the pinned setting's chart (`pinned/ghost.py`), stays while values
come and go. plotly.js is the file inside the installed plotly package: no CDN.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import gradio as gr
import plotly

from components.assets import ASSETS
from components.i18n.language import LazyString, gettext
from components.ui.pinned.ghost import ghost

PLOTLY = Path(plotly.__file__).parent / "package_data" / "plotly.min.js"

CARD = "isx-card"


def plotly_head() -> str:
    """The script tag that loads plotly.js, which `Served` serves. Goes to `launch(head=...)`."""
    return f'<script src="{PLOTLY.name}"></script>'


def chart(first: str = "", *, height: int = 400, elem_id: str, table: bool = False) -> gr.HTML:
    """A chart component, its table open if `table`. Its value is `Chart.to_json()`, its event `select` has `layer`."""
    return gr.HTML(
        value=first,
        html_template=LazyString(lambda: template(height, table)),
        js_on_load=(ASSETS / "chart.js").read_text(encoding="utf-8"),
        elem_id=elem_id,
        elem_classes=CARD,
        apply_default_css=False,
        ghost="",
    )


def template(height: int, table: bool = False) -> str:
    """A chart's place on a page (HTML), its table open if `table`."""
    return f"""
<figure class="isx-chart">
  <figcaption><h3 class="isx-title"></h3><p class="isx-note"></p></figcaption>
  <div class="isx-plot" role="application" tabindex="-1" style="height:{height}px"></div>
  <div class="isx-under">
    <details class="isx-twin"{" open" if table else ""}><summary>{gettext("Table")}</summary>
      <div class="isx-scroll" tabindex="0" role="region" aria-label="{gettext("The chart's data")}">
        <table><thead class="isx-head"></thead><tbody class="isx-rows"></tbody></table></div></details>
    <button type="button" class="isx-png">{gettext("Save PNG")}</button>
  </div>
</figure>
"""


def is_chart(component: gr.components.Component) -> bool:
    """Whether a component is one that `chart` has made."""
    return CARD in (component.elem_classes or ())


def ghost_update(value: object) -> dict[str, Any]:
    """The update that gives a chart the ghost of what is shown of the pinned setting, or takes it away."""
    return gr.update(ghost=ghost(value) if isinstance(value, str) and value else "")
