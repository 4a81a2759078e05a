"""Compresses JSON in which equal parts are stored once. Pure.

Charts of neighbouring steps have most curves in common, and table rows are similar from step to step.
`assets/published/page.js` unpacks it.
"""

from __future__ import annotations

import base64
import gzip
import json
from typing import Any

MIN_CHARACTERS = 24  # shorter parts are not worth a reference
REFERENCE = "$"  # {"$": 7} refers to the eighth part; no key of a chart has this name


def pack(content: Any) -> str:
    """A JSON value as base64 of its gzip. Raises ValueError for numbers that JSON does not support."""
    parts: list[Any] = []
    indices: dict[str, int] = {}

    def with_references(node: Any) -> Any:
        if isinstance(node, dict):
            node = {key: with_references(value) for key, value in node.items()}
        elif isinstance(node, (list, tuple)):
            node = [with_references(value) for value in node]
        elif not isinstance(node, str):
            return node
        text = _json(node)
        if len(text) < MIN_CHARACTERS:
            return node
        if text not in indices:
            indices[text] = len(parts)
            parts.append(node)
        return {REFERENCE: indices[text]}

    whole = with_references(content)
    return base64.b64encode(gzip.compress(_json({"parts": parts, "whole": whole}).encode(), 9, mtime=0)).decode()


def _json(node: Any) -> str:
    return json.dumps(node, separators=(",", ":"), allow_nan=False)
