"""The Activations tab: how far intra-module and cross-module slicing move the activations, at equal parameters."""

from __future__ import annotations

from collections.abc import Iterator
from html import escape
from typing import Any, NamedTuple

import gradio as gr

from components.activations.charts import QUESTIONS, finding, histogram_chart, shift_chart
from components.activations.measure import ShiftViews
from components.activations.views import ShiftView
from components.page.context import Page
from components.ratios.panel import fold
from components.session.settings import Settings
from components.ui import figure, formatting
from components.ui.chart_bridge import chart
from components.ui.handlers import Follower, visitor_of

NOTHING = "Measured when the model is calibrated and sliced."


class ActivationsPanel(NamedTuple):
    """The tab's components, and what they show."""

    views: ShiftViews
    words: gr.HTML
    shift: gr.HTML
    histograms: gr.HTML

    @property
    def shown(self) -> list[gr.HTML]:
        """Outputs of `show`."""
        return [self.words, self.shift, self.histograms]

    def show(self, settings: Settings, layer: int, request: gr.Request | None) -> tuple:
        """What is measured: words (HTML), shift by layer and the chosen layer's histograms (JSON)."""
        try:
            view = self.views.view(settings, visitor_of(request))
        except ValueError:  # the first line says what is wrong with the setting
            return gr.skip(), gr.skip(), gr.skip()
        words = self._words(settings, view)
        if view is None:
            return words, *(figure.waiting(title.format(layer), NOTHING).to_json() for title in QUESTIONS.values())
        return words, shift_chart(view, int(layer)).to_json(), histogram_chart(view, int(layer)).to_json()

    def measure(self, settings: Settings, layer: int, request: gr.Request) -> Iterator[tuple]:
        """Slice by both methods and measure each; yields status and words (HTML) and both charts (JSON)."""
        if not self.views.may_measure(settings):
            return
        shown = None
        for event in self.views.measure(settings, visitor_of(request)):
            now = self.show(settings, layer, request)
            yield formatting.status(event), *((gr.skip(),) * 3 if now == shown else now)
            shown = now

    def _words(self, settings: Settings, view: ShiftView | None) -> str:
        here = self.views.is_measured(settings)
        first = view is not None and bool(view.snapshot) and settings == Settings()
        wanted = f"{settings.sparsity:g} %"
        if settings.sparsity == 0:
            ahead = "At 0 % nothing is removed and nothing shifts; drag the slider. "
        elif here or first:
            ahead = ""
        elif settings.order == "sequential":
            ahead = f'For {wanted} in the sequential order, press "Slice as in the paper". '
        else:
            ahead = f"For {wanted} this is measured once you let go of the slider and the slice is ready. "
        if view is None:
            return f'<p class="isx-words">{escape(ahead)}</p>'
        found = (
            f"At {view.asked:.0%} slicing moves a token's residual stream, on average over the layers: {finding(view)}."
        )
        massive = f"{view.massive} massive tokens, kept apart" if view.massive else "no massive tokens"
        measured_on = f"Snapshot: {view.snapshot}" if view.snapshot else f"Text: {view.text}."
        protocol = (
            f"Medians over the ordinary ones of {view.tokens:,} held-out tokens in windows of {view.window} "
            f"({massive}). {measured_on} {view.missing}"
        )
        return f'<p class="isx-words">{escape(ahead + found)}</p><p class="isx-quiet">{escape(protocol)}</p>'


def build(session: Any, first: Settings) -> ActivationsPanel:
    """Two charts with what is known of `first`, each with its fold. Called inside a `gr.Tab`."""
    words = gr.HTML(elem_id="shift-words", apply_default_css=False)
    shift = chart(height=540, elem_id="shift-chart")
    fold("shift")
    histograms = chart(height=330, elem_id="histogram-chart", table=True)
    fold("histograms")
    panel = ActivationsPanel(ShiftViews(session), words, shift, histograms)
    for component, value in zip(panel[1:], panel.show(first, 0, None), strict=True):
        component.value = value
    return panel


def connect(panel: ActivationsPanel, page: Page) -> None:
    """What is known follows at once, the measurement after the slice, while the tab is in view."""
    show = Follower("activations", panel.show, panel.shown)
    page.follow(show, [*page.let_go, page.controls.layer.change])
    page.afterwards("activations", panel.measure, [page.status, *panel.shown])
    page.choosing(panel.shift)
