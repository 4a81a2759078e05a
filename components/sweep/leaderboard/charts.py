"""Charts of the leaderboard: damage against sparsity for one model, and against model size. Pure."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from ...i18n.language import gettext, lazy_gettext, number
from ...ui import figure
from ...ui.figure import Chart, Json
from ...ui.labels import METHOD_COLOURS, METHODS, SYMBOLS, Terms

STAGES = Terms(
    {
        "training-free": lazy_gettext("training-free"),
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
MARKS = {"training-free": "", "searched": "-dot", "recovered": "-open"}  # of the symbols
SPARSITY = 0.3  # of the chart against model size
RATIO_TICKS = (1, 1.5, 2, 3, 5, 10, 20, 50, 100, 200, 500, 1000)

Value = Callable[[Any], float]


def sparsity_chart(cells: Sequence[Any]) -> Chart:
    """KL and relative perplexity against sparsity, of one model's `Cell`s on one text; all cells in the table."""
    layout = figure.layout_of(2, revision="leaderboard", vertical=False)
    data = _lines(cells, lambda cell: cell.sparsity, gettext("%{{x:.0%}} removed"))
    for axis in ("xaxis", "xaxis2"):
        layout[axis].update(
            title=figure.title(gettext("target sparsity")), tickformat=".0%", tickvals=_values(cells, "sparsity")
        )
    _damage_axes(layout)
    ranked = sorted(cells, key=lambda cell: (cell.sparsity, cell.divergence))
    return Chart(
        title=gettext("Leaderboard: damage against sparsity"),
        note=gettext(
            "Which method damages the model least at equal parameters? Training-free models are compared with each "
            "other, recovered ones with recovered ones: training costs as many passes through the text as the table "
            "says."
        ),
        protocol=_protocol(cells),
        data=data,
        layout=layout,
        side_by_side=True,
        columns=[
            gettext("Method"),
            gettext("Target sparsity"),
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
                number(cell.perplexity, ",.2f"),
                f"{number(cell.ratio, ',.2f')} ± {number(cell.ratio_error, ',.2f')}",
                f"{number(cell.divergence, '.3f')} ± {number(cell.divergence_error, '.3f')}",
                number(cell.passes, ".1f") if cell.passes else "–",
                *(_optional(speed, ".2f") for speed in (cell.prefill, cell.decode)),
                _optional(cell.loops, ".0%"),
                _optional(cell.answer_tokens, ".1f"),
                f"{cell.day} ({cell.commit})",
            ]
            for cell in ranked
        ],
    )


def size_chart(cells: Sequence[Any]) -> Chart:
    """KL and relative perplexity of training-free slices against the dense model's size, on one text."""
    layout = figure.layout_of(2, revision="leaderboard-size", vertical=False)
    shown = [cell for cell in cells if cell.stage == "training-free" and cell.sparsity == SPARSITY]
    shown.sort(key=lambda cell: cell.parameters)
    sizes = _values(shown, "parameters")
    data = _lines(shown, lambda cell: cell.parameters, gettext("a model of %{{x:.3s}} parameters"))
    for axis in ("xaxis", "xaxis2"):
        layout[axis].update(
            title=figure.title(gettext("parameters of the dense model, log scale")),
            type="log",
            tickvals=sizes,
            ticktext=[_millions(size) for size in sizes],
        )
    _damage_axes(layout)
    return Chart(
        title=gettext("Damage at {sparsity:.0%} against model size", sparsity=SPARSITY),
        note=gettext("Do larger models lose less? The models also differ in family and training text."),
        protocol=_protocol(shown),
        data=data,
        layout=layout,
        side_by_side=True,
        columns=[
            gettext("Model"),
            gettext("Parameters"),
            gettext("Method"),
            gettext("Dense perplexity"),
            gettext("Perplexity"),
            gettext("Perplexity relative to dense"),
            gettext("KL from dense, nats per token"),
        ],
        rows=[
            [
                cell.model,
                _millions(cell.parameters),
                _name(cell),
                number(cell.dense_perplexity, ",.2f"),
                number(cell.perplexity, ",.2f"),
                f"{number(cell.ratio, ',.2f')} ± {number(cell.ratio_error, ',.2f')}",
                f"{number(cell.divergence, '.3f')} ± {number(cell.divergence_error, '.3f')}",
            ]
            for cell in shown
        ],
    )


def _lines(cells: Sequence[Any], x_of: Value, hover: str) -> list[Json]:
    """A line per method and stage: KL in the left panel, relative perplexity in the right one."""
    groups: dict[tuple[str, str], list[Any]] = {}
    for cell in cells:
        groups.setdefault((cell.method, cell.stage), []).append(cell)
    traces = []
    for panel, value, error in ((1, "divergence", "divergence_error"), (2, "ratio", "ratio_error")):
        for (method, stage), points in groups.items():
            line, symbol = figure.line(METHOD_COLOURS.get(method, "baseline"), 1.6), SYMBOLS.get(method, "circle")
            errors = [figure.rounded(getattr(point, error)) for point in points]
            traces.append(
                {
                    "type": "scatter",
                    "mode": "lines+markers",
                    "name": _name(points[0]),
                    "legendgroup": f"{method} {stage}",
                    "showlegend": panel == 1,
                    "x": [x_of(point) for point in points],
                    "y": [figure.rounded(getattr(point, value)) for point in points],
                    "error_y": {"type": "data", "array": errors, "color": line["color"], "thickness": 0.8, "width": 0},
                    "line": line,
                    "marker": {"size": 8, "color": line["color"], "symbol": symbol + MARKS[stage]},
                    "hovertemplate": f"<b>{_name(points[0])}</b><br>{hover}<br>%{{y:.3g}}<extra></extra>",
                    **figure.axes_of(panel),
                }
            )
    return traces


def _damage_axes(layout: Json) -> None:
    layout["hovermode"] = "closest"
    layout["yaxis"].update(title=figure.title(gettext("KL from dense, nats per token")), rangemode="tozero")
    layout["yaxis2"].update(
        title=figure.title(gettext("perplexity relative to dense, log scale")),
        type="log",
        tickvals=RATIO_TICKS,
        ticktext=[number(tick, ",g") for tick in RATIO_TICKS],
    )


def _protocol(cells: Sequence[Any]) -> str:
    days = sorted({(cell.date, cell.day) for cell in cells})
    dates = days[0][1] if days[0] == days[-1] else f"{days[0][1]} – {days[-1][1]}"
    return gettext(
        "One-shot slices in bfloat16, calibrated on Wikipedia alone, measured on 2,048 held-out tokens, {dates}; bars "
        "are standard errors.",
        dates=dates,
    )


def _name(cell: Any) -> str:
    name = METHODS.get(cell.method, cell.method)
    return name if cell.stage == "training-free" else f"{name}, {STAGES[cell.stage]}"


def _optional(value: float | None, code: str) -> str:
    return "–" if value is None else number(value, code)


def _values(cells: Sequence[Any], name: str) -> list[float]:
    return sorted({getattr(cell, name) for cell in cells})


def _millions(parameters: float) -> str:
    return gettext("{millions:,.0f} M", millions=parameters / 1e6)
