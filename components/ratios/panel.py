"""The Ratios tab: pruning ratio per layer, and the importances that determine it."""

from collections.abc import Callable, Mapping

from ..frame.context import Context
from ..gradio_compat.signatures import partial_handler
from ..state.plan_views import Source, importance_curves, map_view, opened_view
from ..state.request import Request
from ..state.session import Session
from ..ui.chart_bridge import chart
from ..ui.explainers import fold
from ..ui.figure import Chart
from ..ui.handlers import LiveOutput, initial_values
from . import overrides
from .anatomy_charts import map_chart, opened_chart
from .charts import importance_chart, ratio_chart


class RatiosPanel:
    """All charts, with data tables (`charts.py`) and explanations, initially for `first`; created inside a `gr.Tab`."""

    def __init__(self, session: Session, first: Request) -> None:
        map_opening = initial_values(lambda: show_anatomy(session, first, 0, ""))
        opening = initial_values(lambda: show(session, first, 0, ""))
        anatomy = chart(map_opening("anatomy"), height=480, elem_id="anatomy-chart")
        opened = chart(map_opening("opened"), height=200, elem_id="layer-chart")  # hidden until a layer is opened
        fold("anatomy")
        ratios = chart(opening("ratios"), height=440, elem_id="ratio-chart")
        fold("ratios")
        self.overrides = overrides.OverridesPanel()
        importances = chart(opening("importances"), height=330, elem_id="importance-chart")
        fold("importances")
        ratio_charts, maps = {"ratios": ratios, "importances": importances}, {"anatomy": anatomy, "opened": opened}
        # Updated on every move, on any tab: the table of manual ratios reads the bars too.
        self.live_output = LiveOutput("ratios", partial_handler(show, session), ratio_charts)
        # Updated on every move while the tab is active.
        self.anatomy = LiveOutput("ratios", partial_handler(show_anatomy, session), maps)


def show(session: Session, request: Request, layer: int, client: str) -> dict[str, str]:
    """The ratio of every layer, and the importances of the chosen layer (JSON)."""

    def charts(source: Source, layer: int) -> dict[str, Chart]:
        config, plans = request.slicing, session.plans
        return {
            "ratios": ratio_chart(plans.view(source, config), layer),
            "importances": importance_chart(importance_curves(source, plans.plan(source, config), layer), layer),
        }

    return _shown(session, request, layer, charts)


def show_anatomy(session: Session, request: Request, layer: int, client: str) -> dict[str, str]:
    """What is kept of every layer, and of the matrices of the chosen layer (JSON)."""

    def charts(source: Source, layer: int) -> dict[str, Chart]:
        plan = session.plans.plan(source, request.slicing)
        return {
            "anatomy": map_chart(map_view(source, plan), layer),
            "opened": opened_chart(opened_view(source, plan, layer)),
        }

    return _shown(session, request, layer, charts)


def _shown(
    session: Session, request: Request, layer: int, make: Callable[[Source, int], Mapping[str, Chart]]
) -> dict[str, str]:
    """Charts of a plan and a layer, as JSON, made once for all clients; nothing without a source or a plan."""
    source = session.source(request)
    if source is None:
        return {}
    layer = min(int(layer), len(source.profile.layers) - 1)

    def charts() -> dict[str, str]:
        return {name: one.to_json() for name, one in make(source, layer).items()}

    try:
        return session.plans.shown(source, request.slicing, (make.__qualname__, layer), charts)
    except ValueError:  # the headline shows what is wrong with the setting
        return {}


def connect(panel: RatiosPanel, context: Context) -> None:
    """Attach the tab's handlers; live outputs update the charts. A click on a chart selects its layer."""
    context.choose_layer_by(panel.anatomy.outputs["anatomy"], *panel.live_output.outputs.values())
    overrides.connect(panel.overrides, context)
