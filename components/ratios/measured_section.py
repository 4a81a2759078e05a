"""A section of the Ratios tab whose numbers a job of minutes measures: chart, summary, buttons and progress."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Generic, NamedTuple, Protocol, TypeVar

import gradio as gr

from ..frame.context import HEAVY, Context
from ..frame.handlers import stop
from ..gradio_compat.signatures import Handler, partial_handler
from ..i18n.language import LazyString, lazy_gettext, translate
from ..jobs.status import Status
from ..state.request import Request
from ..state.session import Session
from ..ui import formatting
from ..ui.chart_bridge import chart
from ..ui.figure import Chart
from ..ui.handlers import LiveOutput

View = TypeVar("View", covariant=True)
NOTICE = lazy_gettext(
    "This runs in the background: answers and the slider's measurements come first. Finished parts are kept when you "
    "cancel."
)


class Source(Protocol[View]):
    """Where a section's numbers come from."""

    def cached(self, request: Request) -> View | None:
        """The numbers, if they are measured. Raises UserError for an impossible setting."""

    def measure(self, request: Request, client: str) -> Iterator[Status | View]:
        """Measure them; yields statuses, and the numbers so far or at last."""


class SectionPanel(NamedTuple):
    """A section's components, and what they show."""

    section: Section[Any]
    outputs: dict[str, Any]  # by name, as in the answers of `Section.measure`
    measure: gr.Button
    cancel: gr.Button


@dataclass(frozen=True)
class Section(Generic[View]):
    """What a section shows, and where its numbers come from."""

    source: Source[View]
    draw: Callable[[View | None, str, int], Chart]  # for an estimator and the chosen layer
    summarise: Callable[[View | None, str], str]  # for an estimator (HTML)
    job: str  # its kind, which is also the endpoint's name
    name: str  # the beginning of the components' ids
    session: Session
    is_complete: Callable[[Any], bool] = lambda view: True  # else it can be measured further

    def show(self, request: Request, layer: int, client: str) -> dict[str, Any]:
        """The numbers, if they are measured: chart (JSON), summary (HTML), and whether the job's buttons are shown."""
        try:
            view = self.source.cached(request)
        except ValueError:  # the headline shows what is wrong with the setting
            return {}
        estimator = request.slicing.estimator
        points = self.draw(view, estimator, int(layer)).to_json()
        job = gr.update(visible=self._is_unfinished(view))
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
                shown = self.session.jobs.looked_at(client, "request", request)
                yield self.show(shown, layer, client) | {"progress": ""}

    def build(self, first: Request, button: str, height: int) -> SectionPanel:
        """The components, initially for `first`. Called inside the Ratios tab."""
        view, estimator, name = self.source.cached(first), first.slicing.estimator, self.name
        points = chart(
            LazyString(lambda: self.draw(view, estimator, 0).to_json()), height=height, elem_id=f"{name}-chart"
        )
        summary = gr.HTML(
            LazyString(lambda: self.summarise(view, estimator)), elem_id=f"{name}-words", apply_default_css=False
        )
        with gr.Row(elem_classes="isx-job", visible=self._is_unfinished(view)) as job:
            measure = gr.Button(button, size="md", elem_id=f"{name}-measure", min_width=210)
            cancel = gr.Button(lazy_gettext("Cancel"), size="md", elem_id=f"{name}-cancel", min_width=70)
        progress = gr.HTML(elem_id=f"{name}-progress", apply_default_css=False)
        outputs = {"chart": points, "summary": summary, "job": job, "progress": progress}
        return SectionPanel(self, outputs, measure, cancel)

    def connect(self, panel: SectionPanel, context: Context, events: Sequence[Any], measure: Handler) -> None:
        """Update the section after some events; measure on request, by a handler that documents the endpoint."""
        outputs, call = panel.outputs, context.call
        context.choose_layer_by(outputs["chart"])
        shown = {name: output for name, output in outputs.items() if name != "progress"}
        context.subscribe(LiveOutput("ratios", partial_handler(self.show), shown), events)
        panel.measure.click(**call(measure, self, outputs=outputs, queue=HEAVY, api_name=self.job))
        panel.cancel.click(**call(stop, self.session, [self.job]))

    def _is_unfinished(self, view: View | None) -> bool:
        return view is None or not self.is_complete(view)
