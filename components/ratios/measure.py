"""Files of ratios, for the page: those that people bring become locks as text, and a plan becomes such a file."""

from __future__ import annotations

from pathlib import Path

from components.state.request import Request
from components.state.session import Session
from intraslice.untrusted.ratio_files import ratios_csv, read_ratios


def with_ratios(request: Request, file: str | None) -> Request:
    """The request with a file's ratios locked; where `locked` gives one, too, that counts. Raises UserError."""
    if file is None:
        return request
    by_hand = [part.strip() for part in request.settings.locked.split(",") if part.strip()]
    locked = {lock[:2] for lock in request.slicing.locked}
    words = [
        f"{layer} {module} {100 * ratio:.12g}"
        for layer, module, ratio in read_ratios(file)
        if (layer, module) not in locked
    ]
    return request.with_settings(locked=", ".join([*words, *by_hand]))


def write_ratios(session: Session, request: Request, path: Path) -> None:
    """The present plan's ratios as a CSV file. Raises UserError before the model is calibrated."""
    layers = session.slice_plan(request).layers
    path.write_text(ratios_csv([(layer.attention_ratio, layer.mlp_ratio) for layer in layers]), encoding="utf-8")
