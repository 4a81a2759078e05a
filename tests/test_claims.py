"""What README.md and docs/results.md say of `assets/leaderboard.csv` is computed here, and stands there word for word.

So are all tables of docs/results.md: the others are those of the files in `docs/results/`. Where a document says
something else, the failing test prints the text that follows from the measurements.
"""

import csv
import math
import re
from collections.abc import Iterable, Iterator, Sequence
from itertools import groupby
from typing import Any, NamedTuple

import pandas
import pytest
from test_documents import ROOT, text_of

from components.compare.charts import facts_chart
from components.compare.measure import FactsCache
from components.compare.models import Columns
from components.estimator.measure import EstimatorCheckCache
from components.state.leaderboard import SEARCH, STAGES, Cell, cells, timings
from components.state.request import parse
from components.state.session import Session
from components.state.settings import Settings
from components.state.task_scores import (
    DENSE,
    Score,
    comparable,
    mean_accuracy,
    mean_difference,
    scores,
    slice_of,
    untrained,
)

QWEN = "Qwen/Qwen2.5-Coder-{}-Instruct"
MODELS = {"default": "135M", QWEN.format("0.5B"): "0.5B", QWEN.format("1.5B"): "1.5B"}
TEXTS = {"wikipedia": "Wikipedia", "news": "news", "help": "help topics", "source": "Python source"}
FREE, LONGER, SEARCHED, RECOVERED = STAGES
REFITTED, NEW_FITS = ("intraslice", "flap", "wanda"), "2026-11-30"  # methods whose fits changed on this day
KL, PERPLEXITY = "divergence", "perplexity_ratio"  # columns; those of their standard errors end in `_error`
# A line for every value of the first column of these files, a column for every value of the second; what a cell says.
CELLS = {
    "paper": "{perplexity} ({ratio}x)",
    "quantisation": "{megabytes} MB: {perplexity} ({divergence})",
    "windows": "{perplexity} ({divergence})",
    "seeds": "{divergence} ± {deviation}",
}
# Comparisons that only a computed sentence may make.
COMPARISON = re.compile(
    r"lowest (?:KL|perplexity) in|\d+ of (?:the )?\d+ (?:case|row|cell)s|[io]n (?:every|all)(?: \w+)? (?:text|row|cell)"
    r"|\d+ to \d+ % (?:lower|higher)|nothing was tuned"
)

Place = tuple[str, str, float]  # model, text, sparsity


class Case(NamedTuple):
    """`intraslice` and the other methods of the same stage, model, text and sparsity."""

    own: Cell
    rivals: list[Cell]

    @property
    def size(self) -> str:
        return MODELS[self.own.model]

    @property
    def text(self) -> str:
        return TEXTS[self.own.text]

    def best(self, column: str = KL) -> Cell:
        """The rival with the lowest value."""
        return min(self.rivals, key=lambda cell: getattr(cell, column))

    def leads(self, column: str = KL) -> bool:
        return bool(getattr(self.own, column) < getattr(self.best(column), column))

    def is_close(self, column: str = KL) -> bool:
        """Whether it differs from the best rival by less than the standard error of the difference."""
        own, best = self.own, self.best(column)
        error = math.hypot(*(getattr(cell, f"{column}_error") for cell in (own, best)))
        return abs(getattr(own, column) - getattr(best, column)) < error


class Board:
    """The cells of a leaderboard, by model, text and sparsity."""

    def __init__(self, cells: Iterable[Cell]) -> None:
        order = [*MODELS, *TEXTS]
        self.cells = sorted(cells, key=lambda cell: (order.index(cell.model), order.index(cell.text), cell.sparsity))

    def of(self, method: str, stage: str, ratios: str = "pca", **equal: Any) -> dict[Place, Cell]:
        """A method's cells in a stage, by the ratios if it has any; `equal` are values of further columns."""
        return {
            (cell.model, cell.text, cell.sparsity): cell
            for cell in self.cells
            if (cell.method, cell.stage) == (method, stage) and cell.ratios in ("", SEARCH, ratios)
            if all(getattr(cell, name) == value for name, value in equal.items())
        }

    def cases(self, stage: str, ratios: str = "pca", **equal: Any) -> list[Case]:
        """Those of a stage in which `intraslice` has these ratios."""
        methods = {cell.method for cell in self.cells} - {"intraslice"}
        others = [self.of(method, stage) for method in sorted(methods)]
        own = self.of("intraslice", stage, ratios, **equal)
        return [Case(cell, [cells[place] for cells in others if place in cells]) for place, cell in own.items()]

    def changes(self, stage: str, model: str, ratios: str = "pca", **equal: Any) -> dict[str, str]:
        """From the smallest to the largest change of KL by a stage, by method; of those whose fits are the same."""
        ranges = {}
        for method in sorted({cell.method for cell in self.cells}):
            before, after = (self.of(method, name, ratios, model=model, **equal) for name in (FREE, stage))
            if after and all(has_old_fits(before[place]) == has_old_fits(cell) for place, cell in after.items()):
                percents = [percent(before[place], cell) for place, cell in after.items()]
                ranges[method] = f"`{method}` {min(percents):+d} to {max(percents):+d} %".replace("+0 ", "0 ")
        return ranges


def percent(old: Cell, new: Cell) -> int:
    return round(100 * (new.divergence / old.divergence - 1))


def has_old_fits(cell: Cell) -> bool:
    return cell.method in REFITTED and cell.date < NEW_FITS


def joined(words: Iterable[str]) -> str:
    *most, last = words
    return f"{', '.join(most)} and {last}" if most else last


def counted(cases: Sequence[Case], column: str = KL, of: str = "") -> str:
    close = sum(case.is_close(column) for case in cases)
    return f"{len(cases)}{of}" + (f" ({close} within one standard error)" if close else "")


def claim(cases: Sequence[Case]) -> str:
    """In how many cases which method leads, and which methods are compared."""
    behind = [case for case in cases if not case.leads()]
    texts: dict[tuple[str, str, str], list[str]] = {}
    for (method, size, text), found in groupby(behind, lambda case: (case.best().method, case.size, case.text)):
        at = joined(str(case.own.sparsity) for case in found)
        texts.setdefault((method, size, at), []).append(text)
    where = (f"`{method}` at {size} and {at} on {joined(of)}" for (method, size, at), of in texts.items())
    lower = f" Another method has the lowest KL in {counted(behind)}: {'; '.join(where)}." if behind else ""
    names = {case.size: joined(f"`{cell.method}`" for cell in case.rivals) for case in cases}
    compared = (f"{joined(sizes)} with {methods}" for methods, sizes in groupby(names, names.__getitem__))
    leading = [[case for case in cases if case.leads(column)] for column in (KL, PERPLEXITY)]
    return (
        f"`intraslice` has the lowest KL in {counted(leading[0], of=f' of {len(cases)} cases')} and the lowest "
        f"perplexity in {counted(leading[1], PERPLEXITY)}.{lower} It is compared at {'; at '.join(compared)}."
    )


def shown(cell: Cell, case: Case) -> str:
    """Perplexity, and in brackets KL; bold where, as written, no method of the case has a lower one."""

    def text(column: str, code: str) -> str:
        least = min(getattr(each, column) for each in (case.own, case.best(column)))
        value = format(getattr(cell, column), code)
        return f"**{value}**" if value == format(least, code) else value

    values = f"{text('perplexity', ',.1f' if cell.perplexity < 1000 else ',.0f')} ({text(KL, '.2f')})"
    return values + "†" * has_old_fits(cell)


def duel(case: Case) -> tuple[str, str]:
    """`intraslice`, and the other method with the lowest KL."""
    return shown(case.own, case), f"`{case.best().method}` {shown(case.best(), case)}"


def markdown(head: Sequence[str], lines: Iterable[Sequence[str]]) -> str:
    rows = "\n".join(f"| {' | '.join(line)} |" for line in lines)
    return f"| {' | '.join(head)} |\n{'|---' * len(head)}|\n{rows}"


def crossed(first: str, entries: Iterable[tuple[str, str, str]]) -> str:
    """A table; an entry has the name of its line, that of its column and a text. `first` heads the lines' names."""
    lines: dict[str, dict[str, str]] = {}
    columns: dict[str, None] = {}
    for name, column, text in entries:
        lines.setdefault(name, {})[column] = text
        columns[column] = None
    filled = ([name, *(line.get(column, "") for column in columns)] for name, line in lines.items())
    return markdown([first, *columns], filled)


def measured(name: str, *before: Sequence[str]) -> str:
    """The table of a file of `docs/results/`: as it is, after the lines `before`, or crossed."""
    with (ROOT / "docs" / "results" / f"{name}.csv").open(encoding="utf-8", newline="") as file:
        head, *rows = csv.reader(file)
    if name not in CELLS:
        return markdown(head, [*before, *rows])
    texts = (CELLS[name].format(**dict(zip(head, row, strict=True))) for row in rows)
    return crossed(head[0], ((*row[:2], text) for row, text in zip(rows, texts, strict=True)))


def table(texts: Iterable[tuple[Cell, str]]) -> str:
    """A line for every model and text, a column for every sparsity."""

    def name(cell: Cell) -> str:
        return f"{MODELS[cell.model]}, {TEXTS[cell.text]} ({cell.dense_perplexity:.1f})"

    return crossed("model, text (dense)", ((name(cell), str(cell.sparsity), text) for cell, text in texts))


def steps(*stages: dict[Place, Cell]) -> str:
    """A table of KL in one stage after another, and its change in all."""
    places = [place for place in stages[0] if all(place in stage for stage in stages)]
    found = ([stage[place] for stage in stages] for place in places)
    values = ((cells, " -> ".join(f"{cell.divergence:.3f}" for cell in cells)) for cells in found)
    return table((cells[0], f"{text}, {percent(cells[0], cells[-1]):+d} %") for cells, text in values)


class Accuracies:
    """The scores of a model and its slices in the tasks that all have, with the slices' cells on Wikipedia."""

    def __init__(self, model: str, board: Board) -> None:
        groups = comparable(scores(), model)
        self.size = MODELS[model]
        self.dense = next(rows for key, rows in groups.items() if key[0] == DENSE)
        cells = {slice_of(cell): cell for cell in board.cells if (cell.model, cell.text) == (model, "wikipedia")}
        found = sorted(
            (cells[key] for key in groups if key in cells), key=lambda cell: (cell.sparsity, cell.divergence)
        )
        self.rows = {cell: groups[slice_of(cell)] for cell in found}

    @property
    def table(self) -> str:
        """The mean, its difference to dense, and every task."""
        tasks = [score.task for score in self.dense]
        head = [f"{self.size}: slice", "KL", "mean", "difference to dense", *(f"`{task}`" for task in tasks)]
        lines = [["dense", "", *self._line(self.dense, tasks)]]
        lines += [[label(cell), f"{cell.divergence:.2f}", *self._line(rows, tasks)] for cell, rows in self.rows.items()]
        return markdown(head, lines)

    def _line(self, rows: list[Score], tasks: list[str]) -> list[str]:
        by_task = {row.task: mean_accuracy([row])[0] for row in rows}
        change = "" if rows is self.dense else plus_minus(mean_difference(rows, self.dense), "+.1f")
        return [plus_minus(mean_accuracy(rows)), change, *(f"{100 * by_task[task]:.1f}" for task in tasks)]

    @property
    def duels(self) -> Iterator[tuple[str, tuple[float, float]]]:
        """The slices of other methods, and the paired difference of their mean accuracy to that of `intraslice`."""
        for own in (cell for cell in self.rows if cell.method == "intraslice" and not cell.other_estimator):
            for cell in self.rows:
                if cell.method != own.method and (cell.stage, cell.sparsity) == (own.stage, own.sparsity):
                    yield f"{label(cell)} ({self.size})", mean_difference(self.rows[cell], self.rows[own])

    @property
    def agreement(self) -> str:
        """How well KL and perplexity order the slices as their mean accuracy does, and where KL does worst."""
        cells = list(self.rows)
        table = pandas.DataFrame({name: [getattr(cell, name) for cell in cells] for name in (KL, PERPLEXITY)})
        table["accuracy"] = [-mean_accuracy(rows)[0] for rows in self.rows.values()]
        ranks = table.rank()  # from 1, for the smallest; equal values share their mean rank
        rho = ranks.corr()["accuracy"]
        worst = (ranks[KL] - ranks["accuracy"]).abs().idxmax()
        places = f"number {ranks[KL][worst]:.0f} by KL, number {ranks.accuracy[worst]:.0f} by mean accuracy"
        differ = f"They disagree most on {label(cells[worst])}: {places}."
        return (
            f"Over the {len(cells)} slices of {self.size}, the rank correlation (Spearman) of mean accuracy is "
            f"{rho[KL]:.2f} with KL on Wikipedia and {rho[PERPLEXITY]:.2f} with perplexity. "
            f"{'Both order them alike.' if ranks[KL].equals(ranks['accuracy']) else differ}"
        )


def label(cell: Cell) -> str:
    extra = [cell.stage] * (cell.stage != FREE) + [f"`{cell.other_estimator}`"] * bool(cell.other_estimator)
    return ", ".join([f"`{cell.method}` at {cell.sparsity}", *extra])


def plus_minus(value: tuple[float, float], code: str = ".1f") -> str:
    """In percentage points."""
    return f"{100 * value[0]:{code}} ± {100 * value[1]:.1f}"


def accuracies(board: Board) -> list[Accuracies]:
    measured_models = {score.model for score in scores()}
    return [Accuracies(model, board) for model in MODELS if model in measured_models]


def readme(board: Board) -> Iterator[str]:
    """What README.md has to say."""
    cases = [case for case in board.cases(FREE, sparsity=0.3) if case.text == "Wikipedia"]
    lines = ([case.size, f"{case.own.dense_perplexity:.1f}", *duel(case)] for case in cases)
    yield markdown(["model", "dense", "`intraslice`", "the other method with the lowest KL"], lines)
    cases = board.cases(FREE)
    leading = counted([case for case in cases if case.leads()], of=f" of {len(cases)} cases")
    yield f"On {len(MODELS)} models and {len(TEXTS)} texts, at 20 to 50 %, `intraslice` has the lowest KL in {leading}."
    duels = [duel for group in accuracies(board) for duel in group.duels]
    better = [f"{name} by {plus_minus(change)} points" for name, change in duels if change[0] > 2 * change[1]]
    yield (
        f"At equal parameters, {len(better)} of {len(duels)} slices by other methods answer multiple-choice questions "
        "without examples (*zero-shot*) more accurately than that by `intraslice`, by more than two standard errors"
        f"{': ' * bool(better)}{'; '.join(better)}."
    )


def results(board: Board) -> Iterator[str]:
    for stage, name in ((FREE, "`pca`"), (LONGER, "`pca`"), (SEARCHED, "ratios by search"), (RECOVERED, "`pca`")):
        cases = board.cases(stage)
        yield table((case.own, "; ".join(duel(case))) for case in cases)
        yield f"With {name}, {claim(cases)}"
    for stage, name in ((FREE, "With `output-error`"), (LONGER, "With it and the longer calibration")):
        yield f"{name}, {claim(board.cases(stage, 'output-error'))}"
    orders: dict[str, list[str]] = {}
    for text, name in TEXTS.items():
        cases = sorted(board.cases(FREE, sparsity=0.3, text=text), key=lambda case: case.own.divergence)
        orders.setdefault(joined(case.size for case in cases), []).append(name)
    ordered = "; ".join(f"{order} on {joined(texts)}" for order, texts in orders.items())
    yield f"At 0.3, from the lowest KL to the highest: {ordered}."
    for stage, name in ((LONGER, "The longer calibration"), (RECOVERED, "Recovery")):
        ranges = {size: ", ".join(board.changes(stage, model).values()) for model, size in MODELS.items()}
        yield f"{name} changes KL at {'; at '.join(f'{size}: {text}' for size, text in ranges.items() if text)}."
    pca, other = (board.of("intraslice", FREE, ratios) for ratios in ("pca", "output-error"))
    yield steps(pca, other)
    yield steps(pca, board.of("intraslice", LONGER, "output-error"), board.of("intraslice", SEARCHED))
    for group in accuracies(board):
        yield group.table
        if len(group.rows) > 2:
            yield group.agreement
    yield timed()
    yield forgotten()
    check = EstimatorCheckCache(Session()).cached(parse(Settings())).agreement
    rho = [check.rho[name]["attention"] for name in ("pca", "fisher", "output-error")]
    rho += [check.ceiling["attention"], check.rho["pca"]["mlp"], check.ceiling["mlp"]]
    for file in sorted((ROOT / "docs" / "results").glob("*.csv")):
        first = [["Wikipedia", *(f"{value:.2f}" for value in rho)]] if file.stem == "rank_correlation" else []
        yield measured(file.stem, *first)


def timed() -> str:
    """The table of `assets/speeds.csv`, with the accuracies of `assets/tasks.csv`."""
    times = [f"{phase}, batch {batch}" for batch in (1, 8) for phase in ("prefill", "decode")]
    accuracies, lines = untrained(comparable(scores(), "default"), 0.3), []
    for method, shapes, divergence, *values in timings("default"):
        name = f"`{method} --align {shapes}`" if shapes else method if method == "dense" else f"`{method}`"
        accuracy = "" if shapes else f"{100 * accuracies[method]:.1f}"
        lines.append([name, f"{divergence:.2f}", accuracy, *(f"{value:.2f}" for value in values)])
    return markdown(["slice", "KL", "mean accuracy", *times], lines)


def forgotten() -> str:
    """A table of the right answers that the default model says, and selects, from what the page has stored."""
    session, entries = Session(), []
    cache = FactsCache(Columns(session))
    for percent in (20, 30, 45):
        view, line = cache.view(session.opening.with_settings(sparsity=percent), "en"), f"{percent / 100:g}"
        for group, _, dense, sliced, *_ in facts_chart(view).rows:
            entries += [("dense", group, dense), (line, group, sliced)]
        entries += [(line, "lost", str(len(view.lost))), (line, "gained", str(len(view.gained)))]
    return crossed("sparsity", entries)


CLAIMS = {"README.md": readme, "docs/results.md": results}


def words(text: str) -> str:
    return " ".join(text.split())


@pytest.mark.parametrize("name", CLAIMS)
def test_a_document_says_what_the_measurements_say_and_compares_nothing_else(name) -> None:
    texts, rest = [*CLAIMS[name](Board(cells()))], words(text_of(ROOT / name))
    missing = [text for text in texts if words(text) not in rest]
    assert not missing, "\n\n".join([f"{name} has to say:", *missing])
    for text in texts:
        rest = rest.replace(words(text), "")
    assert COMPARISON.findall(rest) == []
    assert name == "README.md" or "|---" not in rest, "a table that no file has"
