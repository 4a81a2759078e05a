"""*Convergence with calibration size* on the Ratios tab: differences of ratios from fewer sequences to the latest."""

from __future__ import annotations

from typing import NamedTuple

import gradio as gr

from ..frame.context import Context
from ..gradio_compat.signatures import partial_handler
from ..i18n.language import gettext, lazy_gettext, number, translate
from ..state.request import Request
from ..state.session import Session
from ..state.views import ConvergenceView
from ..ui import figure
from ..ui.chart_bridge import chart
from ..ui.explainers import fold
from ..ui.figure import Chart
from ..ui.handlers import LiveOutput, initial_values

TITLE = lazy_gettext("Convergence with calibration size")
NOTHING = lazy_gettext("Available for models calibrated on more than one sequence.")
TOLERANCE = 0.02  # fraction of a module; a ratio that changes by less has converged
LINES = {
    "attention": (lazy_gettext("Attention, mean over layers"), figure.line("attention", 2.4)),
    "mlp": (lazy_gettext("MLP, mean over layers"), figure.line("mlp", 2.4)),
    "largest": (lazy_gettext("Module with the largest change"), figure.line("dense", 1.4)),
}


class ConvergencePanel(NamedTuple):
    """The section's chart, and the source of its numbers."""

    session: Session
    chart: gr.HTML


def convergence_chart(view: ConvergenceView | None) -> Chart:
    """Difference of the ratios to the latest ones, over the number of sequences that they were estimated from."""
    if view is None:
        return figure.waiting(translate(TITLE), translate(NOTHING))
    sequences = list(view.sequences[:-1])  # the last entry is the latest estimate itself
    layout = figure.layout_of(1, revision=f"convergence-{view.all_sequences}")
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
            "meta": figure.GHOST_ALWAYS,
            "x": sequences,
            "y": [figure.rounded(distance) for distance in getattr(view, measure)[:-1]],
            "line": line,
            "hovertemplate": translate(name) + " %{y:.2%}<extra></extra>",
        }
        for measure, (name, line) in LINES.items()
    ]
    latest, total = view.sequences[-1], view.all_sequences
    return Chart(
        title=translate(TITLE),
        note=gettext(
            "How much calibration is enough? Difference between the ratios estimated from fewer sequences and "
            "those estimated from {latest} sequences. {conclusion}",
            latest=latest,
            conclusion=_conclusion(view),
        ),
        protocol=""
        if latest == total
        else gettext("Calibrated on {sequences} of {of} sequences so far.", sequences=latest, of=total),
        data=data,
        layout=layout,
        columns=[gettext("Sequences"), *(translate(name) for name, _ in LINES.values())],
        rows=[
            [str(count), *(number(getattr(view, measure)[index], ".2%") for measure in LINES)]
            for index, count in enumerate(sequences)
        ],
    )


def _conclusion(view: ConvergenceView) -> str:
    """The number of sequences from which on all ratios have converged."""
    changing = [count for count, distance in zip(view.sequences, view.largest, strict=True) if distance > TOLERANCE]
    converged = [count for count in view.sequences[:-1] if count > max(changing, default=0)]
    points = 100 * TOLERANCE
    if not converged:
        return gettext(
            "At least one module's ratio still changes by more than {points:g} percentage points.", points=points
        )
    return gettext(
        "With {sequences} or more of the {latest} sequences, no module's ratio differs from its latest value by "
        "more than {points:g} percentage points.",
        sequences=converged[0],
        latest=view.sequences[-1],
        points=points,
    )


def show(session: Session, request: Request, layer: int, client: str) -> dict[str, str]:
    """The convergence of a setting's ratios during the calibration (JSON)."""
    try:
        view = session.convergence(request)
    except ValueError:  # the headline shows what is wrong with the setting
        return {}
    return {"chart": convergence_chart(view).to_json()}


def build(session: Session, first: Request) -> ConvergencePanel:
    """The chart, with an explanation. Called inside the Ratios tab."""
    points = chart(initial_values(lambda: show(session, first, 0, ""))("chart"), height=250, elem_id="settling-chart")
    fold("convergence")
    return ConvergencePanel(session, points)


def connect(panel: ConvergencePanel, context: Context) -> None:
    """Update the chart after every committed setting, and while the calibration proceeds."""
    live_output = LiveOutput("ratios", partial_handler(show, panel.session), {"chart": panel.chart})
    context.subscribe(live_output, context.on_commit)
