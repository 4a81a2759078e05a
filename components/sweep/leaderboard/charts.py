"""Charts of the leaderboard: damage and accuracy in tasks against sparsity, and damage against speed and size. Pure."""

import math
from collections.abc import Callable, Mapping, Sequence
from operator import attrgetter

from ...i18n.language import gettext, lazy_gettext, number
from ...state.leaderboard import DTYPE, SPARSITY, STAGES, TOKENS, Cell, Timing
from ...state.task_scores import DENSE, Score, Slice, mean_accuracy, mean_difference, slice_of, untrained
from ...ui import figure
from ...ui.figure import Chart, Figure
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
BATCHES = 1, 8  # sequences of the chart against speed
TICKS = [step * 10**power for power in range(-2, 5) for step in (1, 2, 5)]  # of both logarithmic axes


def sparsity_chart(cells: Sequence[Cell]) -> Chart:
    """KL and relative perplexity against sparsity, of one model's cells on one text."""
    # The longer calibrations of other methods are in the table alone: the legend would fill a phone's screen.
    drawn = [cell for cell in cells if cell.method == "intraslice" or cell.stage != "longer calibration"]
    fig = _damage_panels(
        drawn, f"{cells[0].model} {cells[0].text}", lambda cell: cell.sparsity, gettext("target %{{x:.0%}}")
    )
    for panel in (1, 2):
        fig.x_axis(panel, gettext("target sparsity"), tickformat=".0%", tickvals=_values(cells, "sparsity"))
    ranked = sorted(cells, key=lambda cell: (cell.sparsity, cell.divergence))
    return fig.chart(
        gettext("Leaderboard: damage against sparsity"),
        gettext(
            "Which method damages the model least, at about equal parameters? Untrained slices compete with each "
            "other, recovered ones with each other. The longer calibration reads four times the text, and sequences "
            "that the dense model samples; the other methods with it are in the table."
        ),
        {
            gettext("Method"): map(_name, ranked),
            gettext("Target sparsity"): [number(cell.sparsity, ".0%") for cell in ranked],
            gettext("Actual sparsity"): [number(cell.removed, ".1%") for cell in ranked],
            **_damage(ranked),
            gettext("Dense passes of training or search"): [figure.cell(cell.passes or None, ".1f") for cell in ranked],
            gettext("Prefill speed relative to dense"): [figure.cell(cell.prefill, ".2f") for cell in ranked],
            gettext("Decode speed relative to dense"): [figure.cell(cell.decode, ".2f") for cell in ranked],
            gettext("Answers that loop"): [figure.cell(cell.loops, ".0%") for cell in ranked],
            gettext("Tokens per answer"): [figure.cell(cell.answer_tokens, ".1f") for cell in ranked],
            gettext("Measured"): [cell.date.replace("-", NO_BREAK) for cell in ranked],
        },
        protocol=_protocol(cells),
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
    fig = _damage_panels(shown, f"sizes {shown[0].text}", lambda cell: cell.parameters, "%{text}")
    sizes = _values(shown, "parameters")
    title, labels = gettext("parameters of the dense model's layers, log scale"), [_millions(size) for size in sizes]
    for panel in (1, 2):
        fig.x_axis(panel, title, type="log", tickvals=sizes, ticktext=labels)
    return fig.chart(
        gettext("Damage at {sparsity:.0%} against model size", sparsity=SPARSITY),
        gettext("Do larger models lose less? The models also differ in family, training text and type of the weights."),
        {
            gettext("Model"): [cell.model_name for cell in shown],
            gettext("Type of the weights"): [cell.weights for cell in shown],
            gettext("Parameters of the layers"): [_millions(cell.parameters) for cell in shown],
            gettext("Method"): map(_name, shown),
            gettext("Dense perplexity"): [number(cell.dense_perplexity, ",.2f") for cell in shown],
            **_damage(shown),
        },
        protocol=_protocol(shown),
    )


def accuracy_chart(cells: Sequence[Cell], scores: Mapping[Slice, Sequence[Score]]) -> Chart | None:
    """Mean accuracy in zero-shot tasks against sparsity, and against KL, of one model's cells on one text.

    `scores` has those of the dense model and of slices, all in the same tasks. None if no slice has any.
    """
    of_cell = {cell: scores[slice_of(cell)] for cell in cells if slice_of(cell) in scores}
    if not of_cell:
        return None
    shown = sorted(of_cell, key=lambda cell: (cell.sparsity, cell.divergence))
    means = {cell: mean_accuracy(group) for cell, group in of_cell.items()}
    dense = next(group for key, group in scores.items() if key[0] == DENSE)
    baseline = mean_accuracy(dense)
    fig = Figure(2, f"accuracy {shown[0].model} {shown[0].text}", side_by_side=True, hovermode="closest")
    sparsity = gettext("target %{{x:.0%}}")
    for panel, column, hover in ((1, "sparsity", sparsity), (2, "divergence", "KL %{x:.3g}")):
        _lines(fig, panel, shown, attrgetter(column), means.__getitem__, f"{hover}<br>%{{y:.1%}}")
        fig.y_axis(panel, gettext("mean accuracy in tasks"), tickformat=".0%")
        fig.shapes.append(figure.across(panel, baseline[0], figure.line("dense", 1.2)))
    fig.x_axis(1, gettext("target sparsity"), tickformat=".0%", tickvals=_values(shown, "sparsity"))
    fig.x_axis(2, gettext("KL from dense, log scale"), type="log", tickvals=TICKS, ticktext=_ticktext())
    columns = {
        gettext("Method"): map(_name, shown),
        gettext("Target sparsity"): [number(cell.sparsity, ".0%") for cell in shown],
        gettext("Mean accuracy, %"): [_percent(means[cell]) for cell in shown],
        gettext("Difference to dense"): [_percent(mean_difference(of_cell[cell], dense)) for cell in shown],
        gettext("KL from dense, nats per token"): _with_errors(shown, "divergence"),
    }
    for task in (score.task for score in dense):
        columns[task] = [_percent(mean_accuracy(row for row in of_cell[cell] if row.task == task)) for cell in shown]
    return fig.chart(
        gettext("Leaderboard: accuracy in tasks"),
        gettext(
            "Does a model that is closer to the dense one also choose more right answers? The horizontal line is the "
            "dense model, with {accuracy:.1%}. The differences in the table are paired by question.",
            accuracy=baseline[0],
        ),
        columns,
        protocol=gettext(
            "Zero-shot, by lm-eval: {tasks}, {count:,} questions of the validation sets. Accuracies are normalised by "
            "the lengths of the answers where lm-eval does so; bars are standard errors.",
            tasks=", ".join(score.task for score in dense),
            count=sum(score.questions for score in dense),
        ),
    )


def speed_chart(timings: Sequence[Timing], scores: Mapping[Slice, Sequence[Score]]) -> Chart | None:
    """KL against the time of a token, in prefill and in decoding; `scores` as above. None without timings."""
    if not timings:
        return None
    accuracies = {(method, ""): 100 * value for method, value in untrained(scores, SPARSITY).items()}
    columns = {
        gettext("Method"): list(map(_timed, timings)),
        gettext("KL from dense, nats per token"): [number(timing.divergence, ".2f") for timing in timings],
        gettext("Mean accuracy, %"): [figure.cell(accuracies.get(timing[:2]), ".1f") for timing in timings],
    }
    fig = Figure(2, "speeds", side_by_side=True, hovermode="closest")
    batches = [gettext("batch size {count}", count=batch) for batch in BATCHES]
    for panel, phase, head, title in (
        (1, "prefill", gettext("Prefill time"), gettext("time per token of the prompt, relative to dense")),
        (2, "decode", gettext("Decode time"), gettext("time per new token, relative to dense")),
    ):
        times = [[getattr(timing, f"{phase}_{batch}") for batch in BATCHES] for timing in timings]
        for batch, column in zip(batches, zip(*times, strict=True), strict=True):
            columns[f"{head}, {batch}"] = [number(time, ".2f") for time in column]
        for timing, xs in zip(timings, times, strict=True):
            if timing.method == DENSE:
                continue
            name, line = _timed(timing), figure.line(METHOD_COLOURS.get(timing.method, "baseline"), 1.6)
            symbol = f"{SYMBOLS.get(timing.method, 'circle')}{'-open' if timing.shapes else ''}"
            fig.curve(
                panel,
                name,
                [timing.divergence] * len(xs),
                f"<b>{name}</b><br>%{{text}}<br>%{{x:.2f}}, KL %{{y:.2f}}",
                xs,
                mode="lines+markers",
                legendgroup=name,
                text=batches,
                line=line,
                marker={"size": [7, 12], "color": line["color"], "symbol": symbol},
            )
        fig.y_axis(panel, gettext("KL from dense, log scale"), type="log", tickvals=TICKS, ticktext=_ticktext())
        fig.x_axis(panel, title, tickformat=".2f", range=[0.7, 1.02])
        fig.shapes.append(figure.upright(panel, 1.0, figure.line("dense", 1.2)))
    return fig.chart(
        gettext("Leaderboard: damage against speed"),
        gettext(
            "Who is faster at what damage? Farther left is faster, farther down closer to the dense model. Removing "
            "whole layers (ShortGPT) saves the most time, at great damage; sizes that suit the device (open symbols) "
            "save some time without more damage."
        ),
        columns,
        protocol=gettext(
            "The default model at {sparsity:.0%}, bfloat16, one CPU thread, all models in turns; small symbols: one "
            "sequence, large ones: eight at once. Accuracy is the mean in zero-shot tasks.",
            sparsity=SPARSITY,
        ),
    )


def _timed(timing: Timing) -> str:
    name = METHODS.get(timing.method, timing.method)
    return f"{name}, {timing.shapes}" if timing.shapes else name


def _damage_panels(cells: Sequence[Cell], revision: str, x_of: Callable[[Cell], float], hover: str) -> Figure:
    """A line per method, stage and estimator: KL in the left panel, relative perplexity in the right one."""
    fig = Figure(2, revision, side_by_side=True, hovermode="closest")
    for panel, value, title in (
        (1, "divergence", gettext("KL from dense, log scale")),
        (2, "perplexity_ratio", gettext("perplexity relative to dense, log scale")),
    ):
        fig.y_axis(panel, title, type="log", tickvals=TICKS, ticktext=_ticktext())
        _lines(fig, panel, cells, x_of, attrgetter(value, f"{value}_error"), f"{hover}<br>%{{y:.3g}}")
    return fig


def _lines(
    fig: Figure,
    panel: int,
    cells: Sequence[Cell],
    x_of: Callable[[Cell], float],
    y_of: Callable[[Cell], tuple[float, float]],
    hover: str,
) -> None:
    """A line per method, stage and estimator; `y_of` is a value and its error. All but those of `_nearest` are gray."""
    order, groups = list(METHODS), dict[tuple[str, str, str], list[Cell]]()
    for cell in sorted(cells, key=lambda cell: (order.index(cell.method), STAGES.index(cell.stage), x_of(cell))):
        groups.setdefault((cell.method, cell.stage, cell.other_estimator), []).append(cell)
    coloured = _nearest(cells)
    for (method, stage, estimator), points in groups.items():
        name, colour = _name(points[0]), METHOD_COLOURS.get(method, "baseline")
        line = figure.line(colour, 1.6)
        line["dash"] = DASHES.get(stage, line["dash"])
        symbol = OTHER_ESTIMATOR_SYMBOL if estimator else SYMBOLS.get(method, "circle")
        symbol = STAGE_SYMBOLS.get(stage, f"{symbol}-open" if stage == "recovered" else symbol)
        is_coloured = (stage, estimator) == (STAGES[0], "") and method in coloured
        fig.curve(
            panel,
            name,
            [y_of(point)[0] for point in points],
            f"<b>{name}</b><br>{hover}",
            [x_of(point) for point in points],
            mode="lines+markers",
            legendgroup=f"{method} {stage} {estimator}",
            text=[point.model_name for point in points],
            error_y=figure.error_bars(colour, [y_of(point)[1] for point in points]),
            line=line,
            marker={"size": 8, "color": line["color"], "symbol": symbol},
            **({"zorder": 1} if is_coloured else {"meta": {"gray": True}}),
        )


def _nearest(cells: Sequence[Cell]) -> set[str]:
    """`intraslice`, and the two other methods whose untrained slices have the lowest mean KL at `SPARSITY`."""
    found: dict[str, list[float]] = {}
    for cell in cells:
        if (cell.stage, cell.sparsity) == (STAGES[0], SPARSITY) and cell.method != "intraslice":
            found.setdefault(cell.method, []).append(cell.divergence)
    return {"intraslice", *sorted(found, key=lambda method: sum(found[method]) / len(found[method]))[:2]}


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


def _damage(cells: Sequence[Cell]) -> dict[str, list[str]]:
    """The table's columns of perplexity, its ratio to the dense one, and KL."""
    return {
        gettext("Perplexity"): [number(cell.perplexity, ",.2f") for cell in cells],
        gettext("Perplexity relative to dense"): _with_errors(cells, "perplexity_ratio"),
        gettext("KL from dense, nats per token"): _with_errors(cells, "divergence"),
    }


def _with_errors(cells: Sequence[Cell], name: str) -> list[str]:
    """A value of each cell with its standard error, both rounded to the first two digits of the error."""
    pairs = list(map(attrgetter(name, f"{name}_error"), cells))
    digits = [1 - math.floor(math.log10(error)) for _, error in pairs]
    return [
        " ± ".join(number(round(shown, digit), f",.{max(digit, 0)}f") for shown in pair)
        for pair, digit in zip(pairs, digits, strict=True)
    ]


def _percent(values: tuple[float, float]) -> str:
    """A value and its error in percent, with a digit after the point."""
    return " ± ".join(number(100 * value, ".1f") for value in values)


def _ticktext() -> list[str]:
    return [number(tick, ",g") for tick in TICKS]


def _values(cells: Sequence[Cell], name: str) -> list[float]:
    return sorted({getattr(cell, name) for cell in cells})


def _millions(parameters: float) -> str:
    return gettext("{millions:,.0f} M", millions=parameters / 1e6)
