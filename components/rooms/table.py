"""The answers of a room as CSV, for whoever leads it."""

from __future__ import annotations

import csv
import io
import json
from typing import Any

from ..i18n.language import gettext, long_text
from .questions import Question, Value, questions
from .room import Room

FORMULA = ("=", "+", "-", "@", "\t", "\r")  # how a cell begins that a spreadsheet would compute


def as_csv(room: Room) -> str:
    """A row per student and question, in the current language; numbers as programs write them."""
    steps = json.loads(long_text("lesson.json"))["steps"]
    file = io.StringIO()
    writer = csv.writer(file)
    header = (gettext("student"), gettext("question"), gettext("title"), gettext("prediction"), gettext("measured"))
    writer.writerow(map(_cell, header))
    for number, question in questions().items():
        content, truth = steps[number - 1], room.revealed.get(number)
        answers = sorted((room.numbers[student], value) for student, value in dict(room.answers[number]).items())
        for student, value in answers:
            cells = (
                student,
                number,
                content["title"],
                _written(question, content, value),
                _written(question, content, truth),
            )
            writer.writerow(map(_cell, cells))
    return "\ufeff" + file.getvalue()  # the mark by which spreadsheets recognise UTF-8


def _written(question: Question, content: dict[str, Any], value: Value | None) -> str | float:
    """A value as a cell: a number, the words of a choice, or numbers with blanks between them."""
    if value is None:
        return ""
    if isinstance(value, list):
        return " ".join(f"{entry:g}" for entry in value)
    if question.is_choice:
        choices = content["control"].get("choices") or [
            gettext("Dense model"),
            gettext("IntraSlice"),
            gettext("Cross-module"),
        ]
        return choices[int(value)]
    return value


def _cell(value: Any) -> Any:
    """A cell that no spreadsheet takes for a formula."""
    return f"'{value}" if isinstance(value, str) and value.startswith(FORMULA) else value
