"""The Spectra tab: how many directions each part of a layer uses, and how many the current setting keeps."""

from ..frame.context import Context
from ..gradio_compat.browser.on_latest import SILENT, on_latest
from ..gradio_compat.signatures import partial_handler
from ..i18n.language import lazy_gettext, translate
from ..state.request import Request
from ..state.session import Session
from ..ui import figure
from ..ui.chart_bridge import chart
from ..ui.explainers import fold
from ..ui.handlers import LiveOutput
from .charts import TITLES, pair_chart, rank_chart, variance_chart
from .measure import SpectraViews

WAITING = lazy_gettext("Spectra appear once the model is calibrated.")


class SpectraPanel:
    """Three charts, empty until the tab is opened, each with an explanation; created inside a `gr.Tab`."""

    def __init__(self, session: Session, first: Request) -> None:
        self.views = SpectraViews(session)
        kinds = ("variance", "variance-chart", 380), ("ranks", "rank-chart", 330), ("pairs", "pair-chart", 260)
        charts = {}
        for name, elem_id, height in kinds:
            charts[name] = chart(height=height, elem_id=elem_id)
            fold(name)
        self.live_output = LiveOutput("spectra", partial_handler(show, self.views), charts)  # updated while dragging


def show(views: SpectraViews, request: Request, layer: int, client: str) -> dict[str, str]:
    """Explained variance, ranks of all heads and rotary pairs of a layer (JSON), and what the setting keeps."""
    try:
        view = views.view(request, layer)
    except ValueError:  # the headline shows what is wrong with the setting
        return {}
    if view is None:
        return {name: figure.waiting(title(layer), translate(WAITING)).to_json() for name, title in TITLES.items()}
    charts = {"variance": variance_chart(view), "ranks": rank_chart(view), "pairs": pair_chart(view)}
    return {name: chart.to_json() for name, chart in charts.items()}


def connect(panel: SpectraPanel, context: Context) -> None:
    """Attach the tab's handlers. Slow curves are computed after a change of the layer, in a queue of their own."""
    queue = {"concurrency_id": "spectra", "concurrency_limit": 2, **SILENT}
    events = [context.controls.layer.change, context.prepared.change, context.opened["spectra"].change]
    computed = on_latest(events, **context.call(panel.views.complete, tab="spectra", queue=queue))
    computed.then(**context.show(panel.live_output))
    context.choose_layer_by(panel.live_output.outputs["ranks"])
