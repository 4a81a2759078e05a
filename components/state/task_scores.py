"""Zero-shot accuracies of the dense and of sliced models: `assets/tasks.csv`, a row for each model and task.

`components/make_tasks.py` measures them. A row has which questions the model answers correctly, so any two models can
be compared on the same questions.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from functools import cache
from typing import NamedTuple

import numpy

from ..assets import ASSETS
from .leaderboard import Cell, read_rows

FILE = ASSETS / "tasks.csv"
DENSE = "dense"
TASKS = ("arc_easy", "openbookqa", "piqa", "winogrande", "arc_challenge", "hellaswag")  # of lm-eval
SLICE = ("method", "ratios", "recovery", "sequences", "samples", "sparsity")  # columns, also of a Cell
Slice = tuple[str, str, str, int, int, float]  # their values


class Score(NamedTuple):
    """A model in a task. The decisive accuracy is the normalised one, where lm-eval reports it."""

    model: str  # the dense model, as in a Cell; so are the columns up to the sparsity
    weights: str
    method: str  # or DENSE, without ratios, recovery and calibration
    ratios: str
    recovery: str
    sequences: int
    samples: int
    sparsity: float
    removed: float
    task: str
    questions: int
    accuracy: float
    accuracy_error: float
    normalised: float | None  # where log-probabilities are divided by the numbers of characters of the answers
    normalised_error: float | None
    difference: float  # of the decisive accuracy to the dense model's
    difference_error: float  # paired by question
    hits: str  # hexadecimal, a bit for each question that is answered correctly
    normalised_hits: str
    date: str
    commit: str

    @property
    def slice(self) -> Slice:
        """What was sliced, and how."""
        return self.method, self.ratios, self.recovery, self.sequences, self.samples, self.sparsity

    @property
    def decisive(self) -> numpy.ndarray:
        """1 for every question that is answered correctly, else 0."""
        bits = numpy.frombuffer(bytes.fromhex(self.normalised_hits or self.hits), numpy.uint8)
        return numpy.unpackbits(bits, count=self.questions)


def packed(hits: Sequence[bool]) -> str:
    """The hits as hexadecimal text, padded to whole bytes."""
    return numpy.packbits(numpy.array(hits, bool)).tobytes().hex()


def with_error(values: numpy.ndarray) -> tuple[float, float]:
    """The mean of a value of each question, and its standard error."""
    return float(values.mean()), float(values.std(ddof=1) / math.sqrt(len(values)))


def difference(score: Score, other: Score) -> tuple[float, float]:
    """The decisive accuracy less the other's in the same task, and its standard error, paired by question."""
    return with_error(score.decisive.astype(float) - other.decisive)


def mean_accuracy(scores: Iterable[Score]) -> tuple[float, float]:
    """The mean decisive accuracy of one model over its tasks, each of the same weight, and the standard error."""
    return _mean([with_error(score.decisive) for score in scores])


def mean_difference(scores: Iterable[Score], others: Iterable[Score]) -> tuple[float, float]:
    """The mean over tasks of the paired difference of two models, which have the same tasks."""
    by_task = {other.task: other for other in others}
    return _mean([difference(score, by_task[score.task]) for score in scores])


def _mean(values: Sequence[tuple[float, float]]) -> tuple[float, float]:
    return sum(value for value, _ in values) / len(values), math.hypot(*(error for _, error in values)) / len(values)


def comparable(scores: Iterable[Score], model: str) -> dict[Slice, list[Score]]:
    """The scores of a model and its slices by slice, in the tasks that all of them have."""
    found: dict[Slice, list[Score]] = {}
    for score in scores:
        if score.model == model:
            found.setdefault(score.slice, []).append(score)
    tasks = [{score.task for score in group} for group in found.values()]
    shared = set.intersection(*tasks) if tasks else set()
    return {key: [score for score in group if score.task in shared] for key, group in found.items()}


def slice_of(cell: Cell) -> Slice:
    """The slice of a cell of the leaderboard."""
    return cell.method, cell.ratios, cell.recovery, cell.sequences, cell.samples, cell.sparsity


@cache
def scores() -> tuple[Score, ...]:
    """The scores that the page ships with."""
    return read_rows(Score, FILE)
