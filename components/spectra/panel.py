"""The Spectra tab: how many directions each part of a layer uses, and what the current setting keeps of them."""

from __future__ import annotations

from typing import Any, NamedTuple

import gradio as gr

from components.page.context import Page
from components.ratios.panel import fold
from components.session.settings import Settings
from components.spectra.charts import QUESTIONS, variance_chart
from components.spectra.head_charts import pair_chart, rank_chart
from components.spectra.measure import SpectraViews
from components.ui import figure
from components.ui.chart_bridge import chart

WAITING = "Spectra follow when the model is calibrated."


class SpectraPanel(NamedTuple):
    """The tab's components, and what they show."""

    views: SpectraViews
    variance: gr.HTML
    ranks: gr.HTML
    pairs: gr.HTML

    @property
    def shown(self) -> list[gr.HTML]:
        """Outputs of `show`."""
        return [self.variance, self.ranks, self.pairs]

    def show(self, settings: Settings, layer: int, request: gr.Request | None) -> tuple:
        """Explained variance, ranks of all heads and rotary pairs of a layer (JSON), with what the setting keeps."""
        try:
            view = self.views.view(settings, layer)
        except ValueError:  # the first line says what is wrong with the setting
            return gr.skip(), gr.skip(), gr.skip()
        if view is None:
            return tuple(figure.waiting(words.format(layer), WAITING).to_json() for words in QUESTIONS.values())
        return variance_chart(view).to_json(), rank_chart(view).to_json(), pair_chart(view).to_json()

    def complete(self, settings: Settings, layer: int, request: gr.Request | None) -> None:
        """Find the curves of a layer that take seconds; `show` has them from then on."""
        self.views.complete(settings, layer)


def build(session: Any, first: Settings) -> SpectraPanel:
    """Three charts, with what is known of `first`, each with its fold. Called inside a `gr.Tab`."""
    variance = chart(height=380, elem_id="variance-chart")
    fold("variance")
    ranks = chart(height=330, elem_id="rank-chart")
    fold("ranks")
    pairs = chart(height=260, elem_id="pair-chart")
    fold("pairs")
    panel = SpectraPanel(SpectraViews(session), variance, ranks, pairs)
    for component, value in zip(panel[1:], panel.show(first, 0, None), strict=True):
        component.value = value
    return panel


def connect(panel: SpectraPanel, page: Page) -> None:
    """What takes seconds follows the layer in a lane of its own."""
    page.catch_up("spectra", panel.complete, panel.show, panel.shown)
    page.choosing(panel.ranks)
