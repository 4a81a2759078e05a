"""Results kept on disk: each under a digest of everything it depends on, whole or not at all.

A result that cannot be kept is right all the same, so a full disk is a warning here and never an error.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from torch import Tensor

log = logging.getLogger(__name__)


def cache_path(kind: str, suffix: str, *parts: object) -> Path:
    """Where a result of this kind is kept that depends on `parts`; tensors count with every value and their shape."""
    digest = hashlib.sha256()
    for part in parts:
        if isinstance(part, Tensor):
            digest.update(f"{part.dtype} {tuple(part.shape)}".encode())
            digest.update(part.cpu().numpy().tobytes())
        else:
            digest.update(f"\n{part}\n".encode())
    return cache_folder() / kind / f"{digest.hexdigest()[:32]}{suffix}"


def keep(path: Path, write: Callable[[Path], object], what: str) -> None:
    """Let `write` make a file, and put it at `path` once it is whole. A warning where that fails."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=path.parent) as folder:
            draft = Path(folder) / path.name
            write(draft)
            os.replace(draft, path)
    except (OSError, SafetensorError) as error:
        log.warning(
            "cannot keep %s in %s: %s; free some space or point INTRASLICE_CACHE elsewhere", what, path.parent, error
        )


def keep_record(path: Path, record: dict[str, Any], what: str) -> None:
    """Keep a JSON object."""
    keep(path, lambda draft: draft.write_text(json.dumps(record), encoding="utf-8"), what)


def kept_record(path: Path) -> dict[str, Any]:
    """The JSON object kept at `path`; empty when there is none or the file is damaged (it is then made anew)."""
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return record if isinstance(record, dict) else {}


def cache_folder() -> Path:
    """Where converted weights, text and calibrations are kept: INTRASLICE_CACHE, else the platform's user cache."""
    if chosen := os.environ.get("INTRASLICE_CACHE"):
        return Path(chosen).expanduser()
    home = Path.home()
    if sys.platform == "win32":
        base = Path(os.environ.get("LOCALAPPDATA", home / "AppData" / "Local"))
    elif sys.platform == "darwin":
        base = home / "Library" / "Caches"
    else:
        base = Path(os.environ.get("XDG_CACHE_HOME", home / ".cache"))
    return base / "intraslice"


@contextmanager
def empty_cache() -> Iterator[None]:
    """While open, results are kept in an empty folder, and gone afterwards: what is timed is made, not read."""
    before = os.environ.get("INTRASLICE_CACHE")
    with tempfile.TemporaryDirectory() as folder:
        os.environ["INTRASLICE_CACHE"] = folder
        try:
            yield
        finally:
            os.environ.pop("INTRASLICE_CACHE")
            if before is not None:
                os.environ["INTRASLICE_CACHE"] = before
