"""The Spectra tab: how many directions each part of a layer uses, and what the current setting keeps of them."""

from __future__ import annotations

from typing import Any, NamedTuple

from components.frame.context import Context
from components.gradio_compat.signatures import partial_handler
from components.i18n.language import lazy_gettext, translate
from components.spectra.charts import QUESTIONS, variance_chart
from components.spectra.head_charts import pair_chart, rank_chart
from components.spectra.measure import SpectraViews
from components.state.request import Request
from components.state.session import Session
from components.ui import figure
from components.ui.chart_bridge import chart
from components.ui.explainers import fold
from components.ui.handlers import LiveOutput, at_opening, unchanged

WAITING = lazy_gettext("Spectra follow when the model is calibrated.")


class Charts(NamedTuple):
    """Outputs of `show`."""

    variance: Any
    ranks: Any
    pairs: Any


class SpectraPanel(NamedTuple):
    """The tab's charts, and where their numbers come from."""

    views: SpectraViews
    charts: Charts
    live_output: LiveOutput  # of every move while the tab is in view


def show(views: SpectraViews, request: Request, layer: int, client: str) -> Charts:
    """Explained variance, ranks of all heads and rotary pairs of a layer (JSON), with what the setting keeps."""
    try:
        view = views.view(request, layer)
    except ValueError:  # the first line says what is wrong with the setting
        return unchanged(Charts)
    if view is None:
        return Charts(*(figure.waiting(asked(layer), translate(WAITING)).to_json() for asked in QUESTIONS.values()))
    return Charts(variance_chart(view).to_json(), rank_chart(view).to_json(), pair_chart(view).to_json())


def complete(views: SpectraViews, request: Request, layer: int, client: str) -> None:
    """Find the curves of a layer that take seconds; `show` has them from then on."""
    views.complete(request, layer)


def build(session: Session, first: Request) -> SpectraPanel:
    """Three charts with what is known of `first`, each with its fold. Called inside a `gr.Tab`."""
    views = SpectraViews(session)
    opening = at_opening(lambda: show(views, first, 0, ""))
    variance = chart(opening.variance, height=380, elem_id="variance-chart")
    fold("variance")
    ranks = chart(opening.ranks, height=330, elem_id="rank-chart")
    fold("ranks")
    pairs = chart(opening.pairs, height=260, elem_id="pair-chart")
    fold("pairs")
    charts = Charts(variance, ranks, pairs)
    return SpectraPanel(views, charts, LiveOutput("spectra", partial_handler(show, views), charts))


def connect(panel: SpectraPanel, context: Context) -> None:
    """What takes seconds follows the layer in a lane of its own."""
    context.on_layer_change(panel.live_output, complete, panel.views)
    context.choose_layer_by(panel.charts.ranks)
