"""*How soon do the ratios settle?* on the Ratios tab: how far they were from the latest, after fewer sequences."""

from __future__ import annotations

from typing import Any, NamedTuple

import gradio as gr

from components.frame.context import Context
from components.gradio_compat.signatures import partial_handler
from components.i18n.language import gettext, lazy_gettext, number, translate
from components.state.request import Request
from components.state.session import Session
from components.state.views import SettlingView
from components.ui import figure
from components.ui.chart_bridge import chart
from components.ui.explainers import fold
from components.ui.figure import Chart
from components.ui.handlers import LiveOutput, at_opening, unchanged

QUESTION = lazy_gettext("Convergence with calibration size")
NOTHING = lazy_gettext("Available for models calibrated on more than one sequence.")
SETTLED = 0.02  # of a module: a ratio that moves by less is at rest
LINES = {
    "attention": (lazy_gettext("Attention, mean of the layers"), figure.line("attention", 2.4)),
    "mlp": (lazy_gettext("MLP, mean of the layers"), figure.line("mlp", 2.4)),
    "largest": (lazy_gettext("Module with the largest change"), figure.line("dense", 1.4)),
}


class SettlingPanel(NamedTuple):
    """The section's chart, and its numbers' source."""

    session: Session
    chart: gr.HTML


class Shown(NamedTuple):
    """Outputs of `show`."""

    chart: Any


def settling_chart(view: SettlingView | None) -> Chart:
    """How far the ratios were from the latest, over the sequences that they were estimated from."""
    if view is None:
        return figure.waiting(translate(QUESTION), translate(NOTHING))
    sequences = list(view.sequences[:-1])  # the last are the latest themselves
    layout = figure.layout_of(1, revision=f"settling-{view.all_sequences}")
    layout["xaxis"].update(
        title=figure.title(gettext("calibration sequences")),
        type="log",
        tickvals=sequences,
        ticktext=[str(count) for count in sequences],
    )
    layout["yaxis"].update(
        title=figure.title(gettext("difference from the latest ratios")), tickformat=".1%", rangemode="tozero", nticks=5
    )
    data = [
        {
            "type": "scatter",
            "mode": "lines+markers",
            "name": translate(name),
            "meta": figure.ALWAYS,
            "x": sequences,
            "y": [figure.rounded(distance) for distance in getattr(view, measure)[:-1]],
            "line": line,
            "hovertemplate": translate(name) + " %{y:.2%}<extra></extra>",
        }
        for measure, (name, line) in LINES.items()
    ]
    latest, whole = view.sequences[-1], view.all_sequences
    return Chart(
        title=translate(QUESTION),
        note=gettext(
            "How much calibration is enough? Difference between the ratios estimated from fewer sequences and "
            "those estimated from {latest}. {verdict}",
            latest=latest,
            verdict=_verdict(view),
        ),
        protocol=""
        if latest == whole
        else gettext("Calibrated on {sequences} of {of} sequences so far.", sequences=latest, of=whole),
        data=data,
        layout=layout,
        columns=[gettext("Sequences"), *(translate(name) for name, _ in LINES.values())],
        rows=[
            [str(count), *(number(getattr(view, measure)[index], ".2%") for measure in LINES)]
            for index, count in enumerate(sequences)
        ],
    )


def _verdict(view: SettlingView) -> str:
    """From when on no ratio moved any more."""
    moving = [count for count, distance in zip(view.sequences, view.largest, strict=True) if distance > SETTLED]
    settled = [count for count in view.sequences[:-1] if count > max(moving, default=0)]
    points = 100 * SETTLED
    if not settled:
        return gettext(
            "At least one module's ratio still changes by more than {points:g} percentage points.", points=points
        )
    return gettext(
        "From {settled} on, no module's ratio changed by more than {points:g} percentage points.",
        settled=settled[0],
        points=points,
    )


def show(session: Session, request: Request, layer: int, client: str) -> Shown:
    """How the ratios of a setting came to rest while the model was calibrated (JSON)."""
    try:
        view = session.settling(request)
    except ValueError:  # the first line says what is wrong with the setting
        return unchanged(Shown)
    return Shown(settling_chart(view).to_json())


def build(session: Session, first: Request) -> SettlingPanel:
    """The chart with its fold. Called inside the Ratios tab."""
    points = chart(at_opening(lambda: show(session, first, 0, "")).chart, height=250, elem_id="settling-chart")
    fold("settling")
    return SettlingPanel(session, points)


def connect(panel: SettlingPanel, context: Context) -> None:
    """Follow what comes to rest; the calibration counts as that whenever it has seen enough more."""
    live_output = LiveOutput("ratios", partial_handler(show, panel.session), Shown(panel.chart))
    context.subscribe(live_output, context.on_commit)
