"""Files of ratios, for the page: those that people bring become locks as text, and a plan becomes such a file."""

from __future__ import annotations

from pathlib import Path

from components.i18n.language import later
from components.jobs import limits
from components.state.session import Session
from components.state.settings import Settings
from intraslice.core.config import parse_lock
from intraslice.untrusted.ratio_files import ratios_csv, read_ratios


def with_ratios(settings: Settings, file: str | None) -> Settings:
    """The settings with a file's ratios locked; where `locked` gives one, too, that counts. Raises UserError."""
    if file is None:
        return settings
    locked = limits.words(later("ratios given by hand"), settings.locked, limits.LOCKED.value)
    by_hand = [part for part in locked.split(",") if part.strip()]
    given = {parse_lock(part)[:2] for part in by_hand}
    locks = [lock for lock in read_ratios(file) if lock[:2] not in given]
    words = [f"{layer} {module} {100 * ratio:.12g}" for layer, module, ratio in locks]
    return settings._replace(locked=", ".join([*words, *map(str.strip, by_hand)]))


def write_ratios(session: Session, settings: Settings, path: Path) -> None:
    """The present plan's ratios as a CSV file. Raises UserError before the model is calibrated."""
    layers = session.slice_plan(settings).layers
    path.write_text(ratios_csv([(layer.attention_ratio, layer.mlp_ratio) for layer in layers]), encoding="utf-8")
