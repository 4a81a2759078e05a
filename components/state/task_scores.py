"""Zero-shot accuracies of the dense and of sliced models: `assets/tasks.csv`, a row for each model and task.

`components/make_leaderboard.py` measures them. A row says which questions the model answers correctly, so any two
models can be compared on the same questions.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from functools import cache
from typing import Any, NamedTuple

import numpy

from intraslice.core.config import SliceConfig

from ..assets import ASSETS
from .choices import NO_RECOVERY
from .leaderboard import Cell, read_rows

SCORES = ASSETS / "tasks.csv"
DENSE = "dense"
TASKS = ("arc_easy", "openbookqa", "piqa", "winogrande", "arc_challenge", "hellaswag")  # of lm-eval
SLICE = ("method", "ratios", "recovery", "sequences", "samples", "sparsity")  # columns, also of a Cell
Slice = tuple[str, str, str, int, int, float]  # their values


class Score(NamedTuple):
    """A model in a task. The decisive accuracy is the normalised one, where lm-eval reports it."""

    model: str  # the dense model, as in a Cell; so are the columns up to `removed`
    weights: str
    method: str  # or DENSE
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
    normalised: float | None  # log-probabilities are divided by the numbers of characters of the answers
    normalised_error: float | None
    difference: float  # of the decisive accuracy to the dense model's
    difference_error: float  # paired by question
    accuracy_hits: str  # hexadecimal, a bit for each question; 1 if it is answered correctly
    normalised_hits: str
    date: str
    commit: str

    @property
    def decisive(self) -> numpy.ndarray:
        """1.0 for every question that is answered correctly, else 0.0."""
        bits = numpy.frombuffer(bytes.fromhex(self.normalised_hits or self.accuracy_hits), numpy.uint8)
        return numpy.unpackbits(bits, count=self.questions).astype(float)


def slice_of(row: Cell | Score) -> Slice:
    """What was sliced, and how."""
    return row.method, row.ratios, row.recovery, row.sequences, row.samples, row.sparsity


def scored(hits: Mapping[str, Sequence[bool]], dense: Score | None, columns: Mapping[str, Any]) -> Score:
    """A model's row, by its hits in the metrics `acc` and perhaps `acc_norm`; `dense` is None for the dense one."""
    values = {**dict.fromkeys(Score._fields), **columns, "questions": len(hits["acc"])}
    for name, metric in (("accuracy", "acc"), ("normalised", "acc_norm")):
        bits = numpy.array(hits.get(metric, []), bool)
        values[f"{name}_hits"] = numpy.packbits(bits).tobytes().hex()
        values[name], values[f"{name}_error"] = _with_error(bits) if len(bits) else (None, None)
    score = Score(**values)
    change, error = _with_error(score.decisive - (dense or score).decisive)
    return score._replace(difference=change, difference_error=error)


def mean_accuracy(scores: Iterable[Score]) -> tuple[float, float]:
    """The mean decisive accuracy of one model over its tasks, each of the same weight, and the standard error."""
    return _mean(_with_error(score.decisive) for score in scores)


def mean_difference(scores: Iterable[Score], others: Iterable[Score]) -> tuple[float, float]:
    """The mean over tasks of the difference of two models, paired by question; both have the same tasks."""
    by_task = {other.task: other.decisive for other in others}
    return _mean(_with_error(score.decisive - by_task[score.task]) for score in scores)


def _with_error(values: numpy.ndarray) -> tuple[float, float]:
    return float(values.mean()), float(values.std(ddof=1) / math.sqrt(len(values)))


def _mean(of_tasks: Iterable[tuple[float, float]]) -> tuple[float, float]:
    values, errors = zip(*of_tasks, strict=True)
    return sum(values) / len(values), math.hypot(*errors) / len(values)


def comparable(scores: Iterable[Score], model: str) -> dict[Slice, list[Score]]:
    """The scores of a model and its slices by slice, in the tasks that all of them have."""
    found: dict[Slice, list[Score]] = {}
    for score in scores:
        if score.model == model:
            found.setdefault(slice_of(score), []).append(score)
    shared = set(TASKS).intersection(*({score.task for score in group} for group in found.values()))
    return {key: [score for score in group if score.task in shared] for key, group in found.items()}


def untrained(scores: Mapping[Slice, Sequence[Score]], sparsity: float) -> dict[str, float]:
    """The mean accuracy by method of what `comparable` returned: dense, and the usual slices of this sparsity."""
    return {
        method: mean_accuracy(group)[0]
        for (method, ratios, recovery, _, samples, target), group in scores.items()
        if (recovery, samples) == (NO_RECOVERY, 0)
        and ratios in ("", SliceConfig.estimator)
        and target in (0.0, sparsity)
    }


@cache
def scores() -> tuple[Score, ...]:
    """The scores that the page ships with."""
    return read_rows(Score, SCORES)
