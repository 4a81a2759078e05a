"""The Ratios tab: how much of every layer goes, and why the chosen layer has the ratio it has."""

from __future__ import annotations

from typing import NamedTuple

import gradio as gr

from components.ui.chart_bridge import chart
from components.ui.explainers import fold


class RatiosPanel(NamedTuple):
    """The tab's components."""

    ratios: gr.HTML
    importances: gr.HTML
    by_hand: gr.Column  # room for the table of ratios by hand, below the bars that it repeats


def build(ratios: str = "", importances: str = "") -> RatiosPanel:
    """Two charts, with what they open with as JSON, each with its fold. Called inside a `gr.Tab`."""
    bars = chart(ratios, height=440, elem_id="ratio-chart")
    fold("ratios")
    by_hand = gr.Column()
    why = chart(importances, height=330, elem_id="importance-chart")
    fold("importances")
    return RatiosPanel(bars, why, by_hand)
