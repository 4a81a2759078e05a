"""Files that keep what was measured of every module of the default model: a line each, in as many digits as matter."""

from __future__ import annotations

import datetime
import json
from pathlib import Path
from typing import Any

from components.i18n.language import lazy_gettext, on_day

DIGITS = 5


def save(path: Path, record: dict[str, Any]) -> None:
    """Write a record whose `modules` are flat; says on how many of its `tokens` and when it was measured."""
    measured_on = f"{record['tokens']:,} held-out tokens, {datetime.date.today():%d %B %Y}"
    about = {name: value for name, value in record.items() if name != "modules"} | {"measured_on": measured_on}
    modules = ",\n".join(json.dumps({name: _short(value) for name, value in one.items()}) for one in record["modules"])
    path.write_text(json.dumps(about)[:-1] + ', "modules": [\n' + modules + "\n]}\n", encoding="utf-8")


def load(path: Path) -> dict[str, Any]:
    """The record, its lists as tuples of numbers."""
    record = json.loads(path.read_text(encoding="utf-8"))
    modules = [
        {name: tuple(map(float, value)) if isinstance(value, list) else value for name, value in one.items()}
        for one in record["modules"]
    ]
    _, _, written = record["measured_on"].partition(", ")
    if written:
        tokens = record["tokens"]
        measured_on = lazy_gettext("{tokens:,} held-out tokens, {day}", tokens=tokens, day=on_day(written))
        record |= {"measured_on": measured_on}
    return record | {"modules": modules}


def _short(value: Any) -> Any:
    return [float(f"{number:.{DIGITS}g}") for number in value] if isinstance(value, list | tuple) else value
