"""The chart of *Convergence with calibration size*: ratios from fewer sequences against the latest. Pure."""

from __future__ import annotations

from ..i18n.language import gettext, lazy_gettext, number, translate
from ..state.views import ConvergenceView
from ..ui import figure
from ..ui.figure import Chart, Figure, Json

TITLE = lazy_gettext("Convergence with calibration size")
NOTHING = lazy_gettext("Available for models calibrated on more than one sequence.")
TOLERANCE = 0.02  # fraction of a module; a ratio that changes by less has converged
LINES = {
    "attention": (lazy_gettext("Attention, mean over layers"), figure.line("attention", 2.4)),
    "mlp": (lazy_gettext("MLP, mean over layers"), figure.line("mlp", 2.4)),
    "largest": (lazy_gettext("Module with the largest change"), figure.line("dense", 1.4)),
}


def convergence_chart(view: ConvergenceView | None) -> Chart:
    """Difference of the ratios to the latest ones, over the number of sequences that they were estimated from."""
    if view is None:
        return figure.waiting(translate(TITLE), translate(NOTHING))
    *sequences, latest = view.sequences  # the last entry is the latest estimate itself
    counts, total = [str(count) for count in sequences], view.all_sequences
    fig = Figure(1, f"convergence-{total}")
    fig.x_axis(1, gettext("calibration sequences"), type="log", tickvals=sequences, ticktext=counts)
    fig.y_axis(1, gettext("difference from the latest ratios"), tickformat=".1%", rangemode="tozero", nticks=5)
    columns = {gettext("Sequences"): counts}
    for measure, (name, line) in LINES.items():
        distances = getattr(view, measure)[:-1]
        style: Json = {"mode": "lines+markers", "meta": figure.OVERLAY_ALWAYS, "line": line}
        fig.curve(1, translate(name), distances, translate(name) + " %{y:.2%}", sequences, **style)
        columns[translate(name)] = [number(distance, ".2%") for distance in distances]
    return fig.chart(
        translate(TITLE),
        gettext(
            "How much calibration is enough? Difference between the ratios estimated from fewer sequences and "
            "those estimated from {latest} sequences. {conclusion}",
            latest=latest,
            conclusion=_conclusion(view),
        ),
        figure.table(columns),
        protocol=""
        if latest == total
        else gettext("Calibrated on {sequences} of {of} sequences so far.", sequences=latest, of=total),
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
