"""JSON records in the cache."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

from intraslice.core.cache import keep, kept


def keep_record(path: Path, record: dict[str, Any], what: str) -> None:
    """Keep a JSON object, with a checksum in a second line."""
    content = json.dumps(record)
    lines = f"{content}\n{_checksum(content)}".encode()
    keep(path, lambda draft: draft.write_bytes(lines), what, len(lines))


def kept_record(path: Path) -> dict[str, Any]:
    """The JSON object kept at `path`; empty when there is none that is whole."""
    return kept(path, _read_record) or {}


def _read_record(path: Path) -> dict[str, Any]:
    content, _, checksum = path.read_text(encoding="utf-8").partition("\n")
    record = json.loads(content)
    if not isinstance(record, dict):
        raise ValueError("it is no JSON object")
    if checksum and checksum != _checksum(content):  # records of earlier versions have none
        raise ValueError("its checksum differs")
    return record


def _checksum(content: str) -> str:
    return hashlib.sha256(content.encode()).hexdigest()
