"""User-defined importances in a file: JSON with a list `layers` of objects that have `attention` and `mlp`.

Each is a list of numbers, one per unit: the expected increase of the loss, or of a proxy, if that unit is removed.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from intraslice.core.config import MODULE_KINDS, ModuleKind
from intraslice.core.errors import UserError

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
