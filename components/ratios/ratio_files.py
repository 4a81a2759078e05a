"""Ratio files: an uploaded file becomes locked ratios as text, and a plan becomes such a file."""

from collections.abc import Iterable

from intraslice.core.config import Lock, lock_target, lock_words
from intraslice.untrusted.layer_files import ratios_csv, read_ratios

from ..state.request import Request
from ..state.session import Session


def with_ratios(request: Request, file: str | None) -> Request:
    """The request with a file's ratios locked; ratios that are already locked take precedence. Raises UserError."""
    if file is None:
        return request
    manual_locks = [part.strip() for part in request.settings.locked.split(",") if part.strip()]
    locked = {lock_target(lock) for lock in request.slicing.locked}
    file_locks = locked_text([lock for lock in read_ratios(file) if lock[:2] not in locked])
    return request.with_settings(locked=", ".join([*filter(None, [file_locks]), *manual_locks]))


def locked_text(locks: Iterable[Lock]) -> str:
    """Locks as the controls hold them: "7 attention 25, 3 mlp 0"."""
    return ", ".join(" ".join(lock_words(lock)) for lock in locks)


def planned_ratios(session: Session, request: Request) -> str:
    """The current plan's ratios as such a file. Raises UserError if the model is not calibrated."""
    layers = session.slice_plan(request).layers
    return ratios_csv([(layer.attention_ratio, layer.mlp_ratio) for layer in layers])
