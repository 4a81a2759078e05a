"""The lesson's questions as a class sees them: which answers a question takes, and the distribution of many answers."""

import json
import math
from collections import Counter
from collections.abc import Sequence
from functools import cache
from typing import Any, NamedTuple

import numpy

from intraslice.core import checks

from ..i18n.language import ENGLISH, LazyString, lazy_gettext, long_text

Value = float | int | list[float]
MODELS = 3  # answers to choose from in the question of kind "answers": dense, intra-module, cross-module
MAX_BINS = 20
MAX_TRUTH = 1e6  # a measured value may lie outside of what the control offers


class Question(NamedTuple):
    """A numbered question, with the control of `assets/texts/LANGUAGE/lesson.json` that answers it.

    The kinds "range" and "number" take a number from `low` to `high` in steps of `step`; "choice" and "answers" the
    index of one of so many `choices`; "bars" up to so many numbers from 0 to `high`.
    """

    number: int
    kind: str
    low: float
    high: float
    step: float
    choices: int

    @property
    def is_choice(self) -> bool:
        """Whether an answer is the index of a choice."""
        return self.kind in ("choice", "answers")

    @property
    def expected(self) -> LazyString:
        """What an answer must be, in words."""
        if self.is_choice:
            return lazy_gettext("a whole number from {low} to {high}", low=0, high=self.choices - 1)
        if self.kind == "bars":
            return lazy_gettext("a list of 1 to {count} numbers from 0 to {high:g}", count=self.choices, high=self.high)
        return lazy_gettext("a number from {low:g} to {high:g}", low=self.low, high=self.high)

    def is_answer(self, value: Any) -> bool:
        """Whether a value from outside is an answer to this question."""
        return self._is_value(value, self.low, self.high)

    def is_truth(self, value: Any) -> bool:
        """Whether a value from outside may be what was measured; None where it is not known yet."""
        return value is None or self._is_value(value, -MAX_TRUTH, MAX_TRUTH)

    def _is_value(self, value: Any, low: float, high: float) -> bool:
        if self.is_choice:
            return isinstance(value, int) and checks.is_number(value, 0, self.choices - 1)
        if self.kind == "bars":
            is_list = isinstance(value, list) and 1 <= len(value) <= self.choices
            return is_list and all(checks.is_number(entry, low, high) for entry in value)
        return checks.is_number(value, low, high)

    def edges(self) -> list[float]:
        """The limits of the bins of a question that takes a number: at most `MAX_BINS` of equal width."""
        units = round((self.high - self.low) / self.step)
        width = next(size for size in (1, 2, 5, 10, 20, 50, units) if units <= MAX_BINS * size)
        count = math.ceil(units / width)
        return [round(self.low + index * width * self.step, 6) for index in range(count + 1)]

    def distribution(self, answers: Sequence[Any]) -> dict[str, Any]:
        """The distribution of the answers: `count` of them, and counts by choice or bin, or quartiles of every bar."""
        count = len(answers)
        if self.kind == "bars":
            # Students with another model may have other groups of layers: quartiles are of the most frequent number.
            sizes = Counter(map(len, answers)).most_common(1)
            bars = [values for values in answers if len(values) == sizes[0][0]]
            return {"count": count, "bars": _quartiles(bars)}
        if self.is_choice:
            return {"count": count, "counts": [answers.count(choice) for choice in range(self.choices)]}
        edges = self.edges()
        counts, _ = numpy.histogram(answers, edges)
        return {"count": count, "edges": edges, "counts": counts.tolist(), "quartiles": _quartiles(answers)}


@cache
def questions() -> dict[int, Question]:
    """The lesson's questions by their numbers, from 1."""
    found = {}
    for number, content in enumerate(json.loads(long_text("lesson.json", ENGLISH))["steps"], start=1):
        control = content["control"]
        kind = control["kind"]
        count = {"choice": len(control.get("choices", ())), "answers": MODELS, "bars": control.get("groups", 0)}
        found[number] = Question(
            number, kind, control.get("min", 0), control.get("max", 0), control.get("step", 1), count.get(kind, 0)
        )
    return found


def _quartiles(values: Sequence[Any]) -> list[Any]:
    """First quartile, median and third quartile of numbers, or of each column; empty without values."""
    quartiles: list[Any] = numpy.quantile(values, (0.25, 0.5, 0.75), axis=0).T.round(6).tolist() if values else []
    return quartiles
