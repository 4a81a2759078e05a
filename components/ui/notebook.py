"""Charts of the page as ordinary plotly figures, for notebooks and scripts. Pure functions."""

import plotly.graph_objects as go

from .figure import Chart
from .palette import PAGE, coloured


def plotly_figure(chart: Chart, dark: bool = False) -> go.Figure:
    """The chart in the colours of the light or the dark page, with its caption as subtitle."""
    page = PAGE.dark if dark else PAGE.light
    figure = go.Figure(data=coloured(chart.data, dark), layout=coloured(chart.layout, dark))
    heading = {"text": chart.title, "subtitle": {"text": chart.caption(clickable=False)}, "x": 0.01, "y": 0.96}
    return figure.update_layout(
        title={**heading, "yanchor": "top"}, margin_t=chart.layout["margin"]["t"] + 64, height=480, paper_bgcolor=page
    )
