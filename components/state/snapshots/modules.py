"""Files with measurements of each module of the default model: JSON, one line per module, rounded."""

from __future__ import annotations

import datetime
import json
from pathlib import Path
from typing import Any

from ...i18n.language import lazy_day, lazy_gettext

DIGITS = 5  # significant


def save(path: Path, record: dict[str, Any]) -> None:
    """Write a record whose `modules` are flat dictionaries; adds its number of tokens and today's date."""
    measured_on = f"{record['tokens']:,} held-out tokens, {datetime.date.today():%d %B %Y}"
    about = {name: value for name, value in record.items() if name != "modules"} | {"measured_on": measured_on}
    lines = [json.dumps({name: _rounded(value) for name, value in module.items()}) for module in record["modules"]]
    modules = ",\n".join(lines)
    path.write_text(json.dumps(about)[:-1] + ', "modules": [\n' + modules + "\n]}\n", encoding="utf-8")


def load(path: Path) -> dict[str, Any]:
    """The record, with lists as tuples of numbers and a translatable `measured_on`."""
    record = json.loads(path.read_text(encoding="utf-8"))
    modules = [
        {name: tuple(map(float, value)) if isinstance(value, list) else value for name, value in module.items()}
        for module in record["modules"]
    ]
    _, _, date = record["measured_on"].partition(", ")
    if date:
        tokens = record["tokens"]
        measured_on = lazy_gettext("{tokens:,} held-out tokens, {day}", tokens=tokens, day=lazy_day(date))
        record |= {"measured_on": measured_on}
    return record | {"modules": modules}


def _rounded(value: Any) -> Any:
    return [float(f"{number:.{DIGITS}g}") for number in value] if isinstance(value, list | tuple) else value
