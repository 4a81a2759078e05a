"""Much that is alike, small: JSON in which equal parts stand once, compressed. Pure.

Charts of neighbouring steps share most of their curves, and a table's rows are alike from step to step.
`assets/published/page.js` opens it.
"""

from __future__ import annotations

import base64
import gzip
import json
from typing import Any

LEAST = 24  # characters of a part that is worth a reference
REFERENCE = "$"  # {"$": 7} stands for the eighth part; no key of a chart is called so


def packed(content: Any) -> str:
    """A JSON value as base64 of its gzip. Raises ValueError for numbers that JSON does not have."""
    parts: list[Any] = []
    places: dict[str, int] = {}

    def shared(node: Any) -> Any:
        if isinstance(node, dict):
            node = {key: shared(value) for key, value in node.items()}
        elif isinstance(node, (list, tuple)):
            node = [shared(value) for value in node]
        elif not isinstance(node, str):
            return node
        text = _json(node)
        if len(text) < LEAST:
            return node
        if text not in places:
            places[text] = len(parts)
            parts.append(node)
        return {REFERENCE: places[text]}

    whole = shared(content)
    return base64.b64encode(gzip.compress(_json({"parts": parts, "whole": whole}).encode(), 9, mtime=0)).decode()


def _json(node: Any) -> str:
    return json.dumps(node, separators=(",", ":"), allow_nan=False)
