"""Ratio files: an uploaded file becomes locked ratios as text, and a plan becomes such a file."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from intraslice.untrusted.layer_files import ratios_csv, read_ratios

from ..state.request import Request
from ..state.session import Session


def with_ratios(request: Request, file: str | None) -> Request:
    """The request with a file's ratios locked; ratios that are already locked take precedence. Raises UserError."""
    if file is None:
        return request
    manual_locks = [part.strip() for part in request.settings.locked.split(",") if part.strip()]
    locked = {lock[:2] for lock in request.slicing.locked}
    file_locks = locked_text([lock for lock in read_ratios(file) if lock[:2] not in locked])
    return request.with_settings(locked=", ".join([*filter(None, [file_locks]), *manual_locks]))


def locked_text(locks: Iterable[tuple[int, str, float]]) -> str:
    """Locked ratios as the controls hold them: "7 attention 25, 3 mlp 0"."""
    return ", ".join(f"{layer} {module} {100 * ratio:.12g}" for layer, module, ratio in locks)


def write_ratios(session: Session, request: Request, path: Path) -> None:
    """Write the current plan's ratios as a CSV file. Raises UserError if the model is not calibrated."""
    layers = session.slice_plan(request).layers
    path.write_text(ratios_csv([(layer.attention_ratio, layer.mlp_ratio) for layer in layers]), encoding="utf-8")
