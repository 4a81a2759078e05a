"""A section whose numbers a job of minutes measures: chart, summary, buttons and progress."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

import gradio as gr

from ..frame.context import HEAVY, Context
from ..frame.handlers import stop
from ..i18n.language import lazy_gettext, translate
from ..jobs.status import Status
from ..state.request import Request
from ..state.session import Session
from ..ui import formatting
from ..ui.chart_bridge import chart
from ..ui.figure import Chart
from .measure import EstimatorCheckCache
from .search import RatioSearches

NOTICE = lazy_gettext(
    "This runs in the background: answers and the slider's measurements come first. Finished parts are kept when you "
    "cancel."
)


class SectionPanel(NamedTuple):
    """A section's components, and what they show."""

    section: Section
    shown: dict[str, Any]  # by name, as in the answers of `Section.show`
    measure: gr.Button
    cancel: gr.Button
    progress: gr.HTML

    def connect(self, context: Context, description: str) -> None:
        """Measure on request, by an endpoint with this description; a click on the chart chooses a layer."""
        section, call = self.section, context.call
        context.choose_layer_by(self.shown["chart"])
        outputs = {**self.shown, "progress": self.progress}
        measure = call(section.measure, outputs=outputs, queue=HEAVY, api_name=section.job)
        self.measure.click(**measure, api_description=description)
        self.cancel.click(**call(stop, section.session, [section.job]))


@dataclass(frozen=True)
class Section:
    """What a section shows, and where its numbers come from."""

    source: EstimatorCheckCache | RatioSearches
    draw: Callable[[Any, str, int], Chart]  # of a view or None, for an estimator and the chosen layer
    summarise: Callable[[Any, str], str]  # of a view or None, for an estimator (HTML)
    job: str  # its kind, which is also the endpoint's name
    name: str  # the beginning of the components' ids
    session: Session
    is_complete: Callable[[Any], bool] = lambda view: True  # else it can be measured further

    def show(self, request: Request, layer: int, client: str) -> dict[str, Any]:
        """The numbers, if they are measured: chart (JSON), summary (HTML)."""
        try:
            view = self.source.cached(request)
        except ValueError:  # the headline shows what is wrong with the setting
            return {}
        estimator, is_unfinished = request.slicing.estimator, view is None or not self.is_complete(view)
        points = self.draw(view, estimator, int(layer)).to_json()
        job = gr.update(visible=is_unfinished)  # the row of buttons, while there is something to measure
        return {"chart": points, "summary": self.summarise(view, estimator), "job": job}

    def measure(self, request: Request, layer: int, client: str) -> Iterator[dict[str, Any]]:
        """Measure the numbers; yields chart (JSON), summary and progress (HTML).

        It continues when the settings change; chart and summary are then those of the new ones.
        """
        for event in self.source.measure(request, client):
            if isinstance(event, Status):
                notice = f'<p class="isx-quiet">{translate(NOTICE)}</p>' if event.kind == "busy" else ""
                yield {"progress": formatting.status(event) + notice}
            else:
                shown = self.session.jobs.view_of(client, "request", request)
                yield self.show(shown, layer, client) | {"progress": ""}

    def build(self, button: str, height: int) -> SectionPanel:
        """The components, empty until the tab is opened. Called inside the Estimator tab."""
        name = self.name
        points = chart(height=height, elem_id=f"{name}-chart")
        summary = gr.HTML(elem_id=f"{name}-words", apply_default_css=False)
        with gr.Row(elem_classes="isx-job", visible=False) as job:
            measure = gr.Button(button, size="md", elem_id=f"{name}-measure", min_width=210)
            cancel = gr.Button(lazy_gettext("Cancel"), size="md", elem_id=f"{name}-cancel", min_width=70)
        progress = gr.HTML(elem_id=f"{name}-progress", apply_default_css=False)
        shown = {"chart": points, "summary": summary, "job": job}
        return SectionPanel(self, shown, measure, cancel, progress)
