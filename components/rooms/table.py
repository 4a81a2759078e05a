"""The predictions of a class as CSV, for its presenter."""

from __future__ import annotations

import csv
import io
import json
from typing import Any

from ..i18n.language import gettext, long_text
from .questions import Value, questions
from .rooms import Room

FORMULA = ("=", "+", "-", "@", "\t", "\r")  # how a cell begins that a spreadsheet would compute


def as_csv(room: Room, predictions: list[tuple[int, int, Value]]) -> str:
    """A row per question and student, in the current language; numbers as programs write them."""
    steps = json.loads(long_text("lesson.json"))["steps"]
    file = io.StringIO()
    writer = csv.writer(file)
    header = (gettext("student"), gettext("question"), gettext("title"), gettext("prediction"), gettext("measured"))
    writer.writerow(map(_cell, header))
    for number, student, value in predictions:
        content, truth = steps[number - 1], room.revealed.get(number)
        cells = (student, number, content["title"], _as_text(number, content, value), _as_text(number, content, truth))
        writer.writerow(map(_cell, cells))
    return "\ufeff" + file.getvalue()  # the mark by which spreadsheets recognise UTF-8


def _as_text(number: int, content: dict[str, Any], value: Value | None) -> str | float:
    """A value of a question as a cell: a number, the text of a choice, or numbers with blanks between them."""
    if isinstance(value, list):
        return " ".join(f"{entry:g}" for entry in value)
    if value is None or not questions()[number].is_choice:
        return "" if value is None else value
    models = [gettext("Dense model"), gettext("IntraSlice"), gettext("Cross-module")]
    return (content["control"].get("choices") or models)[int(value)]


def _cell(value: Any) -> Any:
    """A cell that no spreadsheet takes for a formula."""
    return f"'{value}" if isinstance(value, str) and value.startswith(FORMULA) else value
