"""Charts of the leaderboard: damage against sparsity for one model, and against model size. Pure."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

from ...i18n.language import gettext, lazy_gettext, number
from ...state.leaderboard import DTYPE, STAGES, TOKENS, Cell
from ...ui import figure
from ...ui.figure import Chart, Json
from ...ui.labels import ESTIMATORS, METHOD_COLOURS, METHODS, SYMBOLS, Terms

LABELS = Terms(
    {
        "longer calibration": lazy_gettext("longer calibration"),
        "searched": lazy_gettext("ratios by search"),
        "recovered": lazy_gettext("recovered"),
    }
)
TEXTS = Terms(
    {
        "wikipedia": lazy_gettext("Wikipedia"),
        "news": lazy_gettext("News"),
        "help": lazy_gettext("Python help topics"),
        "source": lazy_gettext("Python source"),
    }
)
DASHES = {"longer calibration": "dashdot", "searched": "dot", "recovered": "longdash"}  # else the method's
STAGE_SYMBOLS = {"longer calibration": "triangle-right", "searched": "triangle-down"}  # likewise
OTHER_ESTIMATOR_SYMBOL = "pentagon"  # else the method's
NO_BREAK = "\u2011"  # a hyphen at which a line of the table does not break
SPARSITY = 0.3  # of the chart against model size
TICKS = [step * 10**power for power in range(-2, 5) for step in (1, 2, 5)]  # of both logarithmic axes


def sparsity_chart(cells: Sequence[Cell]) -> Chart:
    """KL and relative perplexity against sparsity, of one model's cells on one text."""
    layout = figure.layout_of(2, revision=f"{cells[0].model} {cells[0].text}", vertical=False)
    # The longer calibrations of other methods are in the table alone: the legend would fill a phone's screen.
    drawn = [cell for cell in cells if cell.method == "intraslice" or cell.stage != "longer calibration"]
    data = _lines(drawn, lambda cell: cell.sparsity, gettext("target %{{x:.0%}}"))
    for axis in ("xaxis", "xaxis2"):
        layout[axis].update(
            title=figure.title(gettext("target sparsity")), tickformat=".0%", tickvals=_values(cells, "sparsity")
        )
    _damage_axes(layout)
    ranked = sorted(cells, key=lambda cell: (cell.sparsity, cell.divergence))
    return Chart(
        title=gettext("Leaderboard: damage against sparsity"),
        note=gettext(
            "Which method damages the model least, at about equal parameters? Untrained slices compete with each "
            "other, recovered ones with each other. The longer calibration reads four times the text, and sequences "
            "that the dense model samples; the other methods with it are in the table."
        ),
        protocol=_protocol(cells),
        data=data,
        layout=layout,
        side_by_side=True,
        columns=[
            gettext("Method"),
            gettext("Target sparsity"),
            gettext("Actual sparsity"),
            gettext("Perplexity"),
            gettext("Perplexity relative to dense"),
            gettext("KL from dense, nats per token"),
            gettext("Dense passes of training or search"),
            gettext("Prefill speed relative to dense"),
            gettext("Decode speed relative to dense"),
            gettext("Answers that loop"),
            gettext("Tokens per answer"),
            gettext("Measured"),
        ],
        rows=[
            [
                _name(cell),
                number(cell.sparsity, ".0%"),
                number(cell.removed, ".1%"),
                *_damage(cell),
                number(cell.passes, ".1f") if cell.passes else "–",
                *(_optional(speed, ".2f") for speed in (cell.prefill, cell.decode)),
                _optional(cell.loops, ".0%"),
                _optional(cell.answer_tokens, ".1f"),
                cell.date.replace("-", NO_BREAK),
            ]
            for cell in ranked
        ],
    )


def size_chart(cells: Sequence[Cell]) -> Chart | None:
    """KL and relative perplexity at `SPARSITY` against the size of the dense model, of untrained slices on one text.

    With the default estimator, which every model has. None if there are no such cells.
    """
    untrained = [cell for cell in cells if cell.stage == "training-free" and not cell.other_estimator]
    shown = [cell for cell in untrained if cell.sparsity == SPARSITY]
    if not shown:
        return None
    shown.sort(key=lambda cell: cell.parameters)
    layout = figure.layout_of(2, revision=f"sizes {shown[0].text}", vertical=False)
    sizes = _values(shown, "parameters")
    data = _lines(shown, lambda cell: cell.parameters, "%{text}")
    for axis in ("xaxis", "xaxis2"):
        layout[axis].update(
            title=figure.title(gettext("parameters of the dense model's layers, log scale")),
            type="log",
            tickvals=sizes,
            ticktext=[_millions(size) for size in sizes],
        )
    _damage_axes(layout)
    return Chart(
        title=gettext("Damage at {sparsity:.0%} against model size", sparsity=SPARSITY),
        note=gettext(
            "Do larger models lose less? The models also differ in family, training text and type of the weights."
        ),
        protocol=_protocol(shown),
        data=data,
        layout=layout,
        side_by_side=True,
        columns=[
            gettext("Model"),
            gettext("Type of the weights"),
            gettext("Parameters of the layers"),
            gettext("Method"),
            gettext("Dense perplexity"),
            gettext("Perplexity"),
            gettext("Perplexity relative to dense"),
            gettext("KL from dense, nats per token"),
        ],
        rows=[
            [
                cell.model_name,
                cell.weights,
                _millions(cell.parameters),
                _name(cell),
                number(cell.dense_perplexity, ",.2f"),
                *_damage(cell),
            ]
            for cell in shown
        ],
    )


def _lines(cells: Sequence[Cell], x_of: Callable[[Cell], float], hover: str) -> list[Json]:
    """A line per method, stage and estimator: KL in the left panel, relative perplexity in the right one."""
    order, groups = list(METHODS), dict[tuple[str, str, str], list[Cell]]()
    for cell in sorted(cells, key=lambda cell: (order.index(cell.method), STAGES.index(cell.stage), x_of(cell))):
        groups.setdefault((cell.method, cell.stage, cell.other_estimator), []).append(cell)
    traces = []
    for panel, value in ((1, "divergence"), (2, "perplexity_ratio")):
        for (method, stage, estimator), points in groups.items():
            line = figure.line(METHOD_COLOURS.get(method, "baseline"), 1.6)
            symbol = OTHER_ESTIMATOR_SYMBOL if estimator else SYMBOLS.get(method, "circle")
            line["dash"] = DASHES.get(stage, line["dash"])
            symbol = STAGE_SYMBOLS.get(stage, f"{symbol}-open" if stage == "recovered" else symbol)
            errors = [figure.rounded(getattr(point, f"{value}_error")) for point in points]
            traces.append(
                {
                    "type": "scatter",
                    "mode": "lines+markers",
                    "name": _name(points[0]),
                    "legendgroup": f"{method} {stage} {estimator}",
                    "showlegend": panel == 1,
                    "x": [x_of(point) for point in points],
                    "y": [figure.rounded(getattr(point, value)) for point in points],
                    "text": [point.model_name for point in points],
                    "error_y": {"type": "data", "array": errors, "color": line["color"], "thickness": 0.8, "width": 0},
                    "line": line,
                    "marker": {"size": 8, "color": line["color"], "symbol": symbol},
                    "hovertemplate": f"<b>{_name(points[0])}</b><br>{hover}<br>%{{y:.3g}}<extra></extra>",
                    **figure.axes_of(panel),
                }
            )
    return traces


def _damage_axes(layout: Json) -> None:
    layout["hovermode"] = "closest"
    for axis, title in (
        ("yaxis", gettext("KL from dense, log scale")),
        ("yaxis2", gettext("perplexity relative to dense, log scale")),
    ):
        ticktext = [number(tick, ",g") for tick in TICKS]
        layout[axis].update(title=figure.title(title), type="log", tickvals=TICKS, ticktext=ticktext)


def _protocol(cells: Sequence[Cell]) -> str:
    days = sorted({(cell.date, cell.day) for cell in cells})
    dates = days[0][1] if days[0] == days[-1] else f"{days[0][1]} – {days[-1][1]}"
    return gettext(
        "One-shot slices in {dtype} of dequantised weights ({weights}), calibrated on Wikipedia, measured on "
        "{tokens:,} held-out tokens, {dates}; bars are standard errors.",
        dtype=DTYPE,
        weights=", ".join(sorted({cell.weights for cell in cells})),
        tokens=TOKENS,
        dates=dates,
    )


def _name(cell: Cell) -> str:
    name = METHODS.get(cell.method, cell.method)
    if cell.other_estimator:
        name = f"{name} ({ESTIMATORS[cell.other_estimator]})"
    return name if cell.stage == "training-free" else f"{name}, {LABELS[cell.stage]}"


def _damage(cell: Cell) -> tuple[str, str, str]:
    """Perplexity, its ratio to the dense one, and KL, as text."""
    return (
        number(cell.perplexity, ",.2f"),
        _with_error(cell.perplexity_ratio, cell.perplexity_ratio_error),
        _with_error(cell.divergence, cell.divergence_error),
    )


def _with_error(value: float, error: float) -> str:
    """Both rounded to the first two digits of the error."""
    digits = 1 - math.floor(math.log10(error))
    return " ± ".join(number(round(shown, digits), f",.{max(digits, 0)}f") for shown in (value, error))


def _optional(value: float | None, code: str) -> str:
    return "–" if value is None else number(value, code)


def _values(cells: Sequence[Cell], name: str) -> list[float]:
    return sorted({getattr(cell, name) for cell in cells})


def _millions(parameters: float) -> str:
    return gettext("{millions:,.0f} M", millions=parameters / 1e6)
