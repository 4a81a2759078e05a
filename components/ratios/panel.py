"""The Ratios tab: pruning ratio per layer, and the importances that determine it."""

from __future__ import annotations

from typing import NamedTuple

from ..frame.context import Context
from ..gradio_compat.signatures import partial_handler
from ..state.plan_views import importance_curves
from ..state.request import Request
from ..state.session import Session
from ..ui.chart_bridge import chart
from ..ui.explainers import fold
from ..ui.handlers import LiveOutput, initial_values
from . import overrides
from .charts import importance_chart, ratio_chart


class RatiosPanel(NamedTuple):
    """The tab's sections."""

    live_output: LiveOutput  # updated on every move, on any tab: the table of manual ratios reads the bars too
    overrides: overrides.OverridesPanel


def show(session: Session, request: Request, layer: int, client: str) -> dict[str, str]:
    """The ratio of every layer, and the importances of the chosen layer (JSON)."""
    source = session.source(request)
    if source is None:
        return {}
    plans, config, layer = session.plans, request.slicing, min(int(layer), len(source.profile.layers) - 1)

    def charts() -> dict[str, str]:
        ratios = ratio_chart(plans.view(source, config), layer)
        importances = importance_chart(importance_curves(source, plans.plan(source, config), layer), layer)
        return {"ratios": ratios.to_json(), "importances": importances.to_json()}

    try:
        return plans.shown(source, config, ("ratio charts", layer), charts)
    except ValueError:  # the headline shows what is wrong with the setting
        return {}


def build(session: Session, first: Request) -> RatiosPanel:
    """All charts, each with an explanation, initially for `first`. Called inside a `gr.Tab`."""
    opening = initial_values(lambda: show(session, first, 0, ""))
    ratios = chart(opening("ratios"), height=440, elem_id="ratio-chart")
    fold("ratios")
    overrides_panel = overrides.build()
    importances = chart(opening("importances"), height=330, elem_id="importance-chart")
    fold("importances")
    charts = {"ratios": ratios, "importances": importances}
    return RatiosPanel(LiveOutput("ratios", partial_handler(show, session), charts), overrides_panel)


def connect(panel: RatiosPanel, context: Context) -> None:
    """Attach the tab's handlers; `live_output` updates the charts. A click on a chart selects its layer."""
    context.choose_layer_by(*panel.live_output.outputs.values())
    overrides.connect(panel.overrides, context)
