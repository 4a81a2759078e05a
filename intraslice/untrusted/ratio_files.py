"""Ratios of one's own as a file: a row a layer, read with a message for each row that is none, and written the same.

CSV has the columns `layer`, `attention_ratio` and `mlp_ratio`, JSON a list of objects that have those. Ratios are
shares from 0 to 1; one that is left empty or out is left to the estimator. Whatever else stands in a row is not
looked at, so what `ratios --json` prints and the page's plan are such files, too: theirs is the list under `layers`.
"""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from intraslice.core.config import MODULE_KINDS, Lock
from intraslice.core.errors import UserError

MAX_CHARACTERS = 2**20
COLUMNS = ("layer", *(f"{module}_ratio" for module in MODULE_KINDS))


def read_ratios(path: str | Path) -> tuple[Lock, ...]:
    """The ratios that a .csv or .json file gives, as locks in its order.

    Raises UserError, naming the row, for what is no ratio, no layer or given twice, and for a file that is none.
    """
    path = Path(path).expanduser()
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            text = file.read(MAX_CHARACTERS + 1)
        if len(text) > MAX_CHARACTERS:
            raise ValueError(f"over {MAX_CHARACTERS:,} characters")
        rows = _json_rows(text) if path.suffix.lower() == ".json" else _csv_rows(text)
    except (OSError, ValueError, RecursionError, csv.Error) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        raise UserError(
            f"{path.name} has no ratios ({reason}); expected .csv with the columns {', '.join(COLUMNS)}, or such .json"
        ) from error
    seen: dict[int, int] = {}
    locks: list[Lock] = []
    for number, row in enumerate(rows, 1):
        where = f"{path.name}, row {number}"
        layer = _number(where, "layer", row["layer"])
        if layer is None or layer < 0 or layer != int(layer):
            raise UserError(f"{where}: layer must be a whole number from 0, got {_shown(row['layer'])}")
        if layer in seen:
            raise UserError(
                f"{where}: layer {layer:g} stands in row {seen[int(layer)]} already; expected one row a layer"
            )
        seen[int(layer)] = number
        for module, column in zip(MODULE_KINDS, COLUMNS[1:], strict=True):
            ratio = _number(f"{where} (layer {layer:g})", column, row.get(column))
            if ratio is not None and not 0 <= ratio <= 1:
                raise UserError(f"{where} (layer {layer:g}): {column} must be a fraction from 0 to 1, got {ratio:g}")
            locks += [] if ratio is None else [(int(layer), module, ratio)]
    if not locks:
        raise UserError(f"{path.name} has no ratios; expected a row for at least one layer")
    return tuple(locks)


def ratios_csv(ratios: Sequence[tuple[float, float]]) -> str:
    """Ratios of attention and MLP, layer by layer, as `read_ratios` reads them again, to the last digit."""
    file = io.StringIO()
    writer = csv.writer(file, lineterminator="\n")
    writer.writerow(COLUMNS)
    writer.writerows((layer, *map(float, both)) for layer, both in enumerate(ratios))
    return file.getvalue()


def _csv_rows(text: str) -> list[dict[str, Any]]:
    reader = csv.DictReader(io.StringIO(text))
    columns = set(reader.fieldnames or ())
    if missing := set(COLUMNS[:1]) - columns:
        raise ValueError(f"no column {missing.pop()}")
    if not set(COLUMNS[1:]) & columns:
        raise ValueError(f"no column {COLUMNS[1]} or {COLUMNS[2]}")
    return list(reader)


def _json_rows(text: str) -> list[dict[str, Any]]:
    found = json.loads(text)
    if isinstance(found, dict):
        found = found.get("plan", found)
        found = found.get("layers") if isinstance(found, dict) else None
    if not isinstance(found, list) or not all(isinstance(row, dict) for row in found):
        raise ValueError("no list of layers")
    return [{"layer": index} | row for index, row in enumerate(found)]


def _number(where: str, column: str, value: Any) -> float | None:
    """None where the cell is empty."""
    if value is None or (isinstance(value, str) and not value.strip()):
        return None
    try:
        if isinstance(value, bool) or not isinstance(value, str | int | float):
            raise ValueError
        number = float(value)
        if abs(number) >= 1e9 or number != number:  # NaN alone differs from itself
            raise ValueError
    except (ValueError, OverflowError):
        raise UserError(f"{where}: {column} must be a number, or nothing, got {_shown(value)}") from None
    return number


def _shown(value: Any) -> str:
    text = "empty" if value in (None, "") else repr(value)
    return text if len(text) <= 40 else f"{text[:40]}…"
