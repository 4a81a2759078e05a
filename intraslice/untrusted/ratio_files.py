"""Reads and writes files of user-defined pruning ratios, one row per layer.

CSV files have the columns `layer`, `attention_ratio` and `mlp_ratio`, JSON files a list of objects with these keys.
Ratios are fractions from 0 to 1; the estimator chooses those that are empty or missing. Other columns are ignored. The
list may be under `layers`, so the output of `ratios --json` and the page's plan can be read too.
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
LAYER = "a whole number, 0 or more"
COLUMNS = ("layer", *(f"{module}_ratio" for module in MODULE_KINDS))


def read_ratios(path: str | Path) -> tuple[Lock, ...]:
    """The ratios in a .csv or .json file, as locks in its order.

    Raises UserError, naming the row, for invalid ratios, invalid or repeated layers, and for unreadable files.
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
            f"{path.name} cannot be read as ratios ({reason}); expected .csv with the columns "
            f"{', '.join(COLUMNS)}, or .json with these keys"
        ) from error
    rows_by_layer: dict[int, int] = {}
    locks: list[Lock] = []
    for number, row in enumerate(rows, 1):
        where = f"{path.name}, row {number}"
        layer = _number(where, "layer", row["layer"], LAYER)
        if layer is None or layer < 0 or layer != int(layer):
            raise UserError(f"{where}: layer must be {LAYER}, got {_shortened(row['layer'])}")
        if layer in rows_by_layer:
            raise UserError(
                f"{where}: layer {layer:g} is in row {rows_by_layer[int(layer)]} already; expected one row per layer"
            )
        rows_by_layer[int(layer)] = number
        for module, column in zip(MODULE_KINDS, COLUMNS[1:], strict=True):
            ratio = _number(f"{where} (layer {layer:g})", column, row.get(column))
            if ratio is not None and not 0 <= ratio <= 1:
                raise UserError(f"{where} (layer {layer:g}): {column} must be a fraction from 0 to 1, got {ratio:g}")
            locks += [] if ratio is None else [(int(layer), module, ratio)]
    if not locks:
        raise UserError(f"{path.name} has no ratios; expected a row for at least one layer")
    return tuple(locks)


def ratios_csv(ratios: Sequence[tuple[float | None, float | None]]) -> str:
    """Ratios of attention and MLP in every layer, in the format of `read_ratios`, at full precision; None is empty."""
    file = io.StringIO()
    writer = csv.writer(file, lineterminator="\n")
    writer.writerow(COLUMNS)
    writer.writerows((layer, *("" if one is None else float(one) for one in pair)) for layer, pair in enumerate(ratios))
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
    rows = json.loads(text)
    if isinstance(rows, dict):
        rows = rows.get("plan", rows)
        rows = rows.get("layers") if isinstance(rows, dict) else None
    if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
        raise ValueError("no list of layers")
    return [{"layer": index} | row for index, row in enumerate(rows)]


def _number(where: str, column: str, value: Any, expected: str = "a number or empty") -> float | None:
    """The number in a cell, None if it is empty."""
    if value is None or (isinstance(value, str) and not value.strip()):
        return None
    try:
        if isinstance(value, bool) or not isinstance(value, str | int | float):
            raise ValueError
        number = float(value)
        if abs(number) >= 1e9 or number != number:  # NaN alone differs from itself
            raise ValueError
    except (ValueError, OverflowError):
        raise UserError(f"{where}: {column} must be {expected}, got {_shortened(value)}") from None
    return number


def _shortened(value: Any) -> str:
    text = "nothing" if value in (None, "") else repr(value)
    return text if len(text) <= 40 else f"{text[:40]}…"
