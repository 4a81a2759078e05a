"""The Ratios tab: how much of every layer goes, and why the chosen layer has the ratio it has."""

from __future__ import annotations

from typing import NamedTuple

import gradio as gr

from components.chart_bridge import ASSETS, chart


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


def fold(name: str) -> None:
    """The "What am I looking at?" under a chart, from `assets/texts/NAME.html`."""
    body = (ASSETS / "texts" / f"{name}.html").read_text(encoding="utf-8")
    summary = "<summary>What am I looking at?</summary>"
    gr.HTML(f'<details class="isx-fold">{summary}{body}</details>', apply_default_css=False)
