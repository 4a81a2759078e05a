"""The Ratios tab: how much of every layer goes, and why the chosen layer has the ratio it has."""

from __future__ import annotations

from typing import Any, NamedTuple

from components.frame.context import Context
from components.gradio_compat.signatures import partial_handler
from components.ratios import overrides, settling
from components.ratios.charts import importance_chart, ratio_chart
from components.ratios.estimator_check import panel as estimator_check
from components.ratios.prices import panel as prices
from components.state.request import Request
from components.state.session import Session
from components.ui.chart_bridge import chart
from components.ui.explainers import fold
from components.ui.handlers import LiveOutput, at_opening, unchanged


class Charts(NamedTuple):
    """Outputs of `show`."""

    ratios: Any
    importances: Any


class RatiosPanel(NamedTuple):
    """The tab's parts."""

    charts: Charts
    live_output: LiveOutput  # of every move, whatever tab is in view: the table of ratios by hand reads the bars, too
    overrides: overrides.OverridesPanel
    estimator_check: estimator_check.EstimatorCheckPanel
    prices: prices.PricesPanel
    settling: settling.SettlingPanel


def show(session: Session, request: Request, layer: int, client: str) -> Charts:
    """The ratio of every layer, and the importances behind those of the chosen one (JSON)."""
    try:
        plan = session.plan(request)
    except ValueError:  # the first line says what is wrong with the setting
        return unchanged(Charts)
    if plan is None:
        return unchanged(Charts)
    layer = min(int(layer), len(plan.layers) - 1)
    importances = importance_chart(session.importances(request, layer), layer)
    return Charts(ratio_chart(plan, layer).to_json(), importances.to_json())


def build(session: Session, first: Request) -> RatiosPanel:
    """Two charts with what is known of `first`, each with its fold. Called inside a `gr.Tab`."""
    opening = at_opening(lambda: show(session, first, 0, ""))
    bars = chart(opening.ratios, height=440, elem_id="ratio-chart")
    fold("ratios")
    by_hand = overrides.build()
    why = chart(opening.importances, height=330, elem_id="importance-chart")
    fold("importances")
    charts = Charts(bars, why)
    live_output = LiveOutput("ratios", partial_handler(show, session), charts)
    was_it_right = estimator_check.build(session, first)
    argument = prices.build(session, first)
    return RatiosPanel(charts, live_output, by_hand, was_it_right, argument, settling.build(session, first))


def connect(panel: RatiosPanel, context: Context) -> None:
    """The charts follow by themselves (`follower`); a click on one chooses its layer."""
    for layers in panel.charts:
        context.choose_layer_by(layers)
    overrides.connect(panel.overrides, context)
    estimator_check.connect(panel.estimator_check, context)
    prices.connect(panel.prices, context)
    settling.connect(panel.settling, context)
