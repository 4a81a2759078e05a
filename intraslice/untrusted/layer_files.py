"""Reads and writes files of user-defined ratios and importances, one row or object per layer."""

import csv
import io
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from intraslice.core.checks import integer, is_number, number
from intraslice.core.config import MODULE_KINDS, ModuleKind, RatioLock
from intraslice.core.errors import Message, UserError

MAX_CHARACTERS = 2**20
COLUMNS = ("layer", *(f"{module}_ratio" for module in MODULE_KINDS))


def read_ratios(path: str | Path) -> tuple[RatioLock, ...]:
    """The ratios in a .csv or .json file, as locks in its order. Raises UserError, naming the row, for invalid ones."""
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
            "{file} cannot be read as ratios ({reason}); expected .csv with the columns {columns}, or .json with these "
            "keys",
            file=path.name,
            reason=str(reason),
            columns=", ".join(COLUMNS),
        ) from error
    rows_by_layer: dict[int, int] = {}
    locks: list[RatioLock] = []
    for index, row in enumerate(rows, 1):
        where = Message("{file}, row {row}", file=path.name, row=index)
        layer = integer(Message("{where}: layer", where=where), _cell(row["layer"]), 0)
        if layer in rows_by_layer:
            message = "{where}: layer {layer} is in row {other} already; expected one row per layer"
            raise UserError(message, where=where, layer=layer, other=rows_by_layer[layer])
        rows_by_layer[layer] = index
        for module, column in zip(MODULE_KINDS, COLUMNS[1:], strict=True):
            if (ratio := _cell(row.get(column))) is not None:
                name = Message("{where} (layer {layer}): {column}", where=where, layer=layer, column=column)
                locks.append((layer, module, number(name, ratio, 0, 1)))
    if not locks:
        raise UserError("{file} has no ratios; expected a row for at least one layer", file=path.name)
    return tuple(locks)


def ratios_csv(ratios: Sequence[Sequence[float | None]]) -> str:
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


def _cell(value: Any) -> Any:
    """The number in a cell; None if it is empty, anything else as it is."""
    if not isinstance(value, str):
        return value
    try:
        return float(value)
    except ValueError:
        return value if value.strip() else None


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
        raise UserError(
            "{file} cannot be read as importances ({reason}); expected JSON such as {example}",
            file=path.name,
            reason=str(reason),
            example='{"layers": [{"attention": [0.1, 0.2], "mlp": [0.3, 0.1]}]}',
        ) from error
    return [
        {module: _numbers(f"{path.name}, layer {index}", row, module) for module in MODULE_KINDS}
        for index, row in enumerate(layers)
    ]


def importances_json(layers: Sequence[Units]) -> str:
    """Importances of all layers, in the format of `read_importances`."""
    rows = [{kind: [float(f"{value:.{DIGITS}g}") for value in row[kind]] for kind in row} for row in layers]
    return json.dumps({"layers": rows})


def _numbers(where: str, row: Any, module: str) -> list[float]:
    values = row.get(module) if isinstance(row, dict) else None
    if not isinstance(values, list) or not all(is_number(value, 0, MAX_IMPORTANCE) for value in values):
        message = "{where}: {module} is not a list of importances; expected non-negative numbers, one per unit"
        raise UserError(message, where=where, module=module)
    return values
