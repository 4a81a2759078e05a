"""The Estimator tab: estimator check, ratio search, and convergence of the ratios with the calibration."""

from __future__ import annotations

from collections.abc import Mapping
from html import escape
from typing import Any, NamedTuple

import gradio as gr

from ..frame.context import Context
from ..gradio_compat.signatures import partial_handler
from ..i18n.language import gettext, lazy_gettext
from ..state.request import Request
from ..state.session import Session
from ..ui import figure, formatting
from ..ui.chart_bridge import chart
from ..ui.explainers import fold
from ..ui.handlers import LiveOutput
from ..ui.labels import ESTIMATORS, MODULES_IN_WORDS
from . import measure, search
from .charts import estimator_check_chart, shown_estimator
from .convergence_chart import convergence_chart
from .search_chart import search_chart
from .section import Section, SectionPanel
from .views import EstimatorCheckView, Misjudged, RatioSearchView


class EstimatorPanel(NamedTuple):
    """The tab's sections, and the button that locks the ratios of a search."""

    check: SectionPanel
    search: SectionPanel
    use: gr.Button
    convergence: gr.HTML


def build(session: Session, first: Request) -> EstimatorPanel:
    """All sections, empty until the tab is opened, each with an explanation. Called inside a `gr.Tab`."""
    checks, searches = measure.EstimatorCheckCache(session), search.RatioSearches(session)
    check = Section(checks, estimator_check_chart, check_summary, measure.JOB, "estimator-check", session)
    check_panel = check.build(lazy_gettext("Measure each module alone"), 360)
    fold("estimator_check")
    found = Section(
        searches, search_chart, search_summary, search.JOB, "search", session, is_complete=lambda view: view.is_complete
    )
    search_panel = found.build(lazy_gettext("Search for better ratios"), 440)
    label = lazy_gettext("Lock the ratios found")
    button = gr.Button(label, size="sm", elem_id="search-use", min_width=190, scale=0)
    fold("search")
    convergence = chart(height=250, elem_id="convergence-chart")
    fold("convergence")
    return EstimatorPanel(check_panel, search_panel, button, convergence)


def show(panel: EstimatorPanel, session: Session, request: Request, layer: int, client: str) -> dict[str, Any]:
    """What is measured of all sections: charts (JSON), summaries (HTML), rows of buttons."""
    try:
        convergence = convergence_chart(session.convergence(request)).to_json()
    except ValueError:  # the headline shows what is wrong with the setting
        return {}
    sections = {"check": panel.check, "search": panel.search}
    shown = {name: part.section.show(request, layer, client) for name, part in sections.items()}
    return _by_section(shown) | {"convergence": convergence}


def use(searches: search.RatioSearches, session: Session, request: Request) -> dict[str, str]:
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
    panel.use.click(**context.call(use, panel.search.section.source, session, outputs=used))


def _by_section(parts: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """Outputs or values of several sections, each under the name of its section and its own."""
    return {f"{section} {name}": value for section, values in parts.items() for name, value in values.items()}


def check_summary(view: EstimatorCheckView | None, estimator: str) -> str:
    """The rank correlations, and the misjudged modules (HTML)."""
    if view is None:
        return ""
    correlations = {ESTIMATORS[name]: rhos for name, rhos in view.rho.items()}
    correlations[gettext("highest possible")] = view.ceiling
    rows = [
        (name, *(figure.cell(rhos[module], ".2f") for module in MODULES_IN_WORDS))
        for name, rhos in correlations.items()
    ]
    table = formatting.table([f"ρ, {name}" for name in MODULES_IN_WORDS.values()], rows, "isx-wide")
    predictor = shown_estimator(view, estimator)
    misjudged = [module for module in view.misjudged if module.estimator == predictor]
    name = ESTIMATORS[predictor]
    lines = "".join(f"<li>{_misjudged(module, escape(name))}</li>" for module in misjudged)
    if misjudged:
        heading = gettext(
            "Modules whose predicted and measured ranks differ by more than a third of the number of layers, even "
            "allowing for noise (rank 1: most damage):"
        )
    else:
        heading = gettext(
            "Allowing for noise, no module's predicted rank ({name}) differs from its measured rank by more than a "
            "third of the number of layers.",
            name=escape(name),
        )
    return f'{table}<div class="isx-words"><p>{heading}</p>{f"<ul>{lines}</ul>" if misjudged else ""}</div>'


def _misjudged(module: Misjudged, name: str) -> str:
    values = module._asdict() | {"module": MODULES_IN_WORDS[module.module], "name": name}
    if module.measured < module.predicted:
        return gettext(
            "Slicing layer {layer}'s {module} does more damage than {name} predicts: measured rank {measured} "
            "of {of}, predicted rank {predicted}.",
            **values,
        )
    return gettext(
        "Slicing layer {layer}'s {module} does less damage than {name} predicts: measured rank {measured} of "
        "{of}, predicted rank {predicted}.",
        **values,
    )


def search_summary(view: RatioSearchView | None, estimator: str) -> str:
    """How far the search is, and what it gained (HTML)."""
    if view is None:
        return ""
    text = gettext(
        "{better} of {generations} generations found a better allocation; {done:.0%} of the search is done.",
        generations=len(view.changes),
        done=min(1.0, view.passes / view.budget),
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
