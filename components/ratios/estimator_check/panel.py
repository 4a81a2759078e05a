"""*Estimator check* on the Ratios tab: chart, Spearman's rho, misjudged modules, and the job that measures them."""

from __future__ import annotations

from collections.abc import Iterator
from html import escape
from typing import Any

from ...frame.context import Context
from ...i18n.language import gettext, lazy_gettext
from ...state.request import Request
from ...state.session import Session
from ...ui import formatting
from ...ui.explainers import fold
from ...ui.labels import ESTIMATORS, MODULES_IN_WORDS
from ..measured_section import Section, SectionPanel
from .chart import estimator_check_chart, format_rho, shown_estimator
from .measure import JOB, EstimatorCheckCache
from .views import EstimatorCheckView, Misjudged


def measure(
    section: Section[EstimatorCheckView], request: Request, layer: int, client: str
) -> Iterator[dict[str, Any]]:
    """Slice each module alone and measure KL; yields chart (JSON), summary and progress (HTML). Takes minutes."""
    yield from section.measure(request, layer, client)


def build(session: Session, first: Request) -> SectionPanel:
    """Chart, summary and the job's buttons, initially for `first`. Called inside the Ratios tab."""
    section = Section(EstimatorCheckCache(session), estimator_check_chart, catalogue, JOB, "verdict", session)
    panel = section.build(first, lazy_gettext("Measure each module alone"), 360)
    fold("verdict")
    return panel


def connect(panel: SectionPanel, context: Context) -> None:
    """Update the section after changes of layer or estimator; measure on request."""
    controls = context.controls
    panel.section.connect(panel, context, [controls.layer.change, controls.settings["estimator"].input], measure)


def catalogue(view: EstimatorCheckView | None, estimator: str) -> str:
    """The rank correlations, and the misjudged modules (HTML)."""
    if view is None:
        return ""
    correlations = {ESTIMATORS[name]: rhos for name, rhos in view.rho.items()}
    correlations[gettext("noise ceiling")] = view.ceiling
    rows = [(name, *(format_rho(rhos[module]) for module in MODULES_IN_WORDS)) for name, rhos in correlations.items()]
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
