"""Reads and writes files of user-defined ratios and importances, one row or object per layer."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from intraslice.core.config import MODULE_KINDS, Lock, ModuleKind
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


MAX_BYTES = 2**26
MAX_IMPORTANCE = 1e30
DIGITS = 6  # significant digits, enough for any ranking

Units = dict[ModuleKind, list[float]]


def read_importances(path: Path) -> list[Units]:
    """The importances of every layer. Raises UserError, naming the layer, for values that are not numbers from 0."""
    try:
        if path.stat().st_size > MAX_BYTES:
            raise ValueError(f"over {MAX_BYTES:,} bytes")
        content = json.loads(path.read_bytes())
        layers = content.get("layers") if isinstance(content, dict) else None
        if not isinstance(layers, list) or not layers:
            raise ValueError("no list of layers")
    except (OSError, ValueError, RecursionError) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        expected = 'expected JSON such as {"layers": [{"attention": [0.1, 0.2], "mlp": [0.3, 0.1]}]}'
        raise UserError(f"{path.name} cannot be read as importances ({reason}); {expected}") from error
    return [
        {module: _numbers(f"{path.name}, layer {index}", row, module) for module in MODULE_KINDS}
        for index, row in enumerate(layers)
    ]


def importances_json(layers: Sequence[Units]) -> str:
    """Importances of all layers, in the format of `read_importances`."""
    rows = [{module: [_rounded(value) for value in values] for module, values in row.items()} for row in layers]
    return json.dumps({"layers": rows})


def _rounded(value: float) -> float:
    return float(f"{value:.{DIGITS}g}")


def _numbers(where: str, row: Any, module: str) -> list[float]:
    values = row.get(module) if isinstance(row, dict) else None
    if not isinstance(values, list) or not all(_is_importance(value) for value in values):
        raise UserError(f"{where}: {module} is not a list of importances; expected non-negative numbers, one per unit")
    return values


def _is_importance(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value < MAX_IMPORTANCE
