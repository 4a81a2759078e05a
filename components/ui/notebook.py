"""Charts of the page as ordinary plotly figures, for notebooks and scripts. Pure functions."""

from __future__ import annotations

from typing import Any

import plotly.graph_objects as go

from .figure import Chart
from .palette import COLOURS, FAINT, PAGE


def plotly_figure(chart: Chart, dark: bool = False) -> go.Figure:
    """The chart in the colours of the light or the dark page, with its caption as subtitle."""

    def coloured(node: Any) -> Any:
        """As `coloured` in `assets/chart.js`."""
        if isinstance(node, str) and node.startswith("@"):
            shades = {**COLOURS, **FAINT}[node[1:]]
            return shades.dark if dark else shades.light
        if isinstance(node, dict):
            return {key: coloured(value) for key, value in node.items()}
        return [coloured(value) for value in node] if isinstance(node, list) else node

    page = PAGE.dark if dark else PAGE.light
    figure = go.Figure(data=coloured(chart.data), layout=coloured(chart.layout))
    heading = {"text": chart.title, "subtitle": {"text": chart.caption(clickable=False)}, "x": 0.01, "y": 0.96}
    return figure.update_layout(
        title={**heading, "yanchor": "top"}, margin_t=chart.layout["margin"]["t"] + 64, height=480, paper_bgcolor=page
    )
