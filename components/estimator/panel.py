"""The Estimator tab: estimator check, ratio search, and convergence of the ratios with the calibration."""

from collections.abc import Callable, Mapping
from typing import Any

import gradio as gr

from ..frame.context import HEAVY, Context
from ..frame.handlers import stop
from ..gradio_compat.signatures import partial_handler
from ..i18n.language import lazy_gettext
from ..jobs.status import Status
from ..state.request import Request
from ..state.session import Session
from ..ui import formatting
from ..ui.chart_bridge import chart
from ..ui.explainers import fold, paragraph
from ..ui.figure import Chart
from ..ui.handlers import LiveOutput, Updates
from .charts import check_summary, convergence_chart, estimator_check_chart, search_chart, search_summary
from .measure import CHECK_JOB, SEARCH_JOB, EstimatorCheckCache, RatioSearches

NOTICE = lazy_gettext(
    "This runs in the background: answers and the slider's measurements come first. Finished parts are kept when you "
    "cancel."
)


class Section:
    """A section whose numbers a job of minutes measures, empty until the tab is opened; created inside a `gr.Tab`.

    `draw` and `summarise` (HTML) take a view or None, and an estimator; `draw` also the chosen layer. `job` is the
    job's kind and the endpoint's name, `name` the beginning of the components' ids.
    """

    def __init__(
        self,
        source: EstimatorCheckCache | RatioSearches,
        draw: Callable[[Any, str, int], Chart],
        summarise: Callable[[Any, str], str],
        job: str,
        name: str,
        button: str,
        height: int,
    ) -> None:
        self.source, self._draw, self._summarise, self._job = source, draw, summarise, job
        points = chart(height=height, elem_id=f"{name}-chart")
        summary = gr.HTML(elem_id=f"{name}-words", apply_default_css=False)
        with gr.Row(elem_classes="isx-job", visible=False) as row:
            self.start = gr.Button(button, size="md", elem_id=f"{name}-measure", min_width=210)
            self.cancel = gr.Button(lazy_gettext("Cancel"), size="md", elem_id=f"{name}-cancel", min_width=70)
        self.progress = gr.HTML(elem_id=f"{name}-progress", apply_default_css=False)
        # As in the answers of `show`.
        self.shown = {"chart": points, "summary": summary, "job": row, "progress": self.progress}

    def show(self, request: Request, layer: int, client: str) -> dict[str, Any]:
        """The numbers, if they are measured: chart (JSON), summary (HTML); what a job said that has ended is past."""
        try:
            view = self.source.cached(request)
        except ValueError:  # the headline shows what is wrong with the setting
            return {}
        estimator, is_unfinished = request.slicing.estimator, view is None or not view.is_complete
        points = self._draw(view, estimator, int(layer)).to_json()
        job = gr.update(visible=is_unfinished)  # the row of buttons, while there is something to measure
        progress = {} if self.source.session.jobs.is_running(client, self._job) else {"progress": ""}
        return {"chart": points, "summary": self._summarise(view, estimator), "job": job, **progress}

    def measure(self, request: Request, layer: int, client: str) -> Updates:
        """Measure the numbers, also when the settings change; yields the chart (JSON), summary and progress (HTML)."""
        for event in self.source.measure(request, client):
            if isinstance(event, Status):
                notice = paragraph(NOTICE) if event.kind == "busy" else ""
                yield {"progress": formatting.status(event) + notice}
            else:
                shown = self.source.session.jobs.view_of(client, "request", request)
                layer = self.source.session.jobs.view_of(client, "layer", layer)
                yield self.show(shown, layer, client) | {"progress": ""}

    def connect(self, context: Context, description: str) -> None:
        """Measure on request, by an endpoint with this description; a click on the chart chooses a layer."""
        context.choose_layer_by(self.shown["chart"])
        measure = context.call(self.measure, outputs=self.shown, queue=HEAVY, api_name=self._job)
        self.start.click(**measure, api_description=description)
        self.cancel.click(**context.call(stop, context.session, [self._job]))


class EstimatorPanel:
    """All sections, empty until the tab is opened, each with an explanation; created inside a `gr.Tab`."""

    def __init__(self, session: Session, first: Request) -> None:
        checks, button = EstimatorCheckCache(session), lazy_gettext("Measure each module alone")
        self.check = Section(
            checks, estimator_check_chart, check_summary, CHECK_JOB, "estimator-check", button, height=360
        )
        fold("estimator_check")
        searches, button = RatioSearches(session), lazy_gettext("Search for better ratios")
        self.search = Section(searches, search_chart, search_summary, SEARCH_JOB, "search", button, height=440)
        label = lazy_gettext("Lock the ratios found")
        self.use = gr.Button(label, size="sm", elem_id="search-use", min_width=190, scale=0)
        fold("search")
        self.convergence = chart(height=250, elem_id="convergence-chart")
        fold("convergence")


def show(panel: EstimatorPanel, session: Session, request: Request, layer: int, client: str) -> dict[str, Any]:
    """What is measured of all sections: charts (JSON), summaries (HTML), rows of buttons."""
    try:
        convergence = convergence_chart(session.convergence(request)).to_json()
    except ValueError:  # the headline shows what is wrong with the setting
        return {}
    sections = {"check": panel.check, "search": panel.search}
    shown = {name: part.show(request, layer, client) for name, part in sections.items()}
    return _by_section(shown) | {"convergence": convergence}


def use(searches: RatioSearches, session: Session, request: Request) -> dict[str, str]:
    """Lock the ratios that the search found, in every layer; if they are impossible, say why."""
    try:
        locked = searches.locked(request)
        session.plan(request.with_settings(locked=locked))
    except ValueError as problem:
        return {"progress": formatting.problem(problem)}
    return {"locked": locked, "progress": ""}


def connect(panel: EstimatorPanel, context: Context) -> None:
    """Update the sections after every committed setting and another layer; measure on request."""
    controls, session = context.controls, context.session
    outputs = _by_section({"check": panel.check.shown, "search": panel.search.shown})
    outputs |= {"convergence": panel.convergence}
    live_output = LiveOutput("estimator", partial_handler(show, panel, session), outputs)
    context.subscribe(live_output, [*context.on_commit, controls.layer.change])
    panel.check.connect(
        context,
        "Slice each module alone and measure KL; yields chart (JSON), summary and progress (HTML). Takes minutes.",
    )
    panel.search.connect(
        context,
        "Search for better ratios at this sparsity; yields chart (JSON), summary and progress (HTML). Takes long.",
    )
    used = {"locked": controls.settings["locked"], "progress": panel.search.progress}
    panel.use.click(**context.call(use, panel.search.source, session, outputs=used))


def _by_section(parts: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """Outputs or values of several sections, each under the name of its section and its own."""
    return {f"{section} {name}": value for section, values in parts.items() for name, value in values.items()}
