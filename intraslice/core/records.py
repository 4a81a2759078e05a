"""JSON records in the cache."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

from intraslice.core.cache import read_result, write_result


def write_record(path: Path, record: dict[str, Any], what: str) -> None:
    """Write a JSON object to the cache, with a checksum in a second line. `what` names it in warnings."""
    content = json.dumps(record)
    lines = f"{content}\n{_checksum(content)}".encode()
    write_result(path, lambda file: file.write_bytes(lines), what, len(lines))


def read_record(path: Path) -> dict[str, Any]:
    """The JSON object at `path`; empty if there is none, or a damaged one."""
    return read_result(path, _parse_record) or {}


def _parse_record(path: Path) -> dict[str, Any]:
    content, _, checksum = path.read_text(encoding="utf-8").partition("\n")
    record = json.loads(content)
    if not isinstance(record, dict):
        raise ValueError("not a JSON object")
    if checksum != _checksum(content):
        raise ValueError("the checksum does not match")
    return record


def _checksum(content: str) -> str:
    return hashlib.sha256(content.encode()).hexdigest()
