"""*Ratio search* on the Ratios tab: it starts from the estimator's plan, and its result can be locked."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import gradio as gr

from ...frame.context import Context
from ...i18n.language import gettext, lazy_gettext
from ...state.request import Request
from ...state.session import Session
from ...ui import formatting
from ...ui.explainers import fold
from ..measured_section import Section, SectionPanel
from .chart import search_chart
from .measure import JOB, RatioSearches, RatioSearchView


class RatioSearchPanel(NamedTuple):
    """The section, and the button that locks its ratios."""

    panel: SectionPanel
    use: gr.Button


def measure(section: Section[RatioSearchView], request: Request, layer: int, client: str) -> Iterator[dict[str, Any]]:
    """Search for better ratios at this sparsity; yields chart (JSON), summary and progress (HTML). Takes long."""
    yield from section.measure(request, layer, client)


def use(searches: RatioSearches, session: Session, request: Request) -> dict[str, str]:
    """Lock the ratios that the search found, in every layer; if they are impossible, say why."""
    try:
        locked = searches.locked(request)
        session.plan(request.with_settings(locked=locked))
    except ValueError as problem:
        return {"progress": formatting.problem(problem)}
    return {"locked": locked, "progress": ""}


def build(session: Session, first: Request) -> RatioSearchPanel:
    """Chart, summary and buttons, initially for `first`. Called inside the Ratios tab."""
    section = Section(
        RatioSearches(session), search_chart, summary, JOB, "search", session, is_complete=lambda view: view.is_complete
    )
    panel = section.build(first, lazy_gettext("Search for better ratios"), 440)
    label = lazy_gettext("Lock the ratios found")
    button = gr.Button(label, size="sm", elem_id="search-use", min_width=190, scale=0)
    fold("search")
    return RatioSearchPanel(panel, button)


def connect(panel: RatioSearchPanel, context: Context) -> None:
    """Update the section after every change of the settings; search on request."""
    section, shown = panel.panel.section, panel.panel
    section.connect(shown, context, context.on_commit, measure)
    outputs = {"locked": context.controls.settings["locked"], "progress": shown.outputs["progress"]}
    panel.use.click(**context.call(use, section.source, context.session, outputs=outputs))


def summary(view: RatioSearchView | None, estimator: str) -> str:
    """How far the search is, and what it gained (HTML)."""
    if view is None:
        return ""
    text = gettext(
        "{better} of {generations} generations found a better allocation. Compute used: {passes:.0f} of {budget:.0f} "
        "forward passes of the dense model over the calibration text.",
        generations=len(view.changes),
        passes=view.passes,
        budget=view.budget,
        better=sum(change != 0 for change in view.changes),
    )
    if view.before is not None and view.after is not None:
        text += " " + gettext(
            "On text that the search did not read, KL from the dense model changed from {before:.3f} to "
            "<b>{after:.3f}</b> nats per token.",
            before=view.before,
            after=view.after,
        )
    elif view.changes:
        text += " " + gettext(
            "On the text used for selection, KL changed by <b>{change:+.0%}</b>, which is an optimistic estimate. "
            "When the search ends, KL is measured on other text.",
            change=view.change,
        )
    return f'<div class="isx-words"><p>{text}</p></div>'
