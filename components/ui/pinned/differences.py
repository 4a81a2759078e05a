"""What the pinned setting A is called, and how another one differs from it, in words. Pure."""

from __future__ import annotations

from collections.abc import Callable
from html import escape
from pathlib import Path

from components.session.settings import Settings
from components.session.views import Beside, Reading
from components.ui.labels import ESTIMATORS

# What is told of A beside its sparsity and estimator, where the current setting has it otherwise.
FIELDS: dict[str, Callable[[Settings], str]] = {
    "bias": lambda pinned: "automatic bias" if pinned.bias is None else f"bias {pinned.bias:g}",
    "cap": lambda pinned: f"cap {pinned.cap:g} %",
    "shapes": lambda pinned: f"{pinned.shapes} shapes",
    "order": lambda pinned: pinned.order,
    "iterative": lambda pinned: "MLPs refined" if pinned.iterative else "MLPs not refined",
    "text": lambda pinned: f"text {Path(pinned.text).name}",
    "upload": lambda pinned: "a text of yours" if pinned.upload else "no text of yours",
    "sequences": lambda pinned: f"{pinned.sequences} sequences",
    "length": lambda pinned: f"of {pinned.length} tokens",
    "seed": lambda pinned: f"seed {pinned.seed}",
    "dtype": lambda pinned: pinned.dtype,
}


def name_of(pinned: Settings, settings: Settings) -> str:
    """`20 %, Fisher, sequential`: A, with whatever else tells it from the current setting."""
    estimator = "by hand" if pinned.locked else ESTIMATORS.get(pinned.estimator, pinned.estimator)
    others = [tell(pinned) for name, tell in FIELDS.items() if getattr(pinned, name) != getattr(settings, name)]
    return ", ".join([f"{pinned.sparsity:g} %", estimator, *others])


def sentence(parameters: int, sliced: Reading | None, pinned: Beside | None, words: Callable[[float], str]) -> str:
    """How a model of so many parameters differs from A's (HTML), nothing where no setting is pinned."""
    if pinned is None:
        return ""
    change = parameters - pinned.plan.parameters_sliced
    weights = (
        "as many parameters" if change == 0 else f"{words(abs(change))} parameters {'more' if change > 0 else 'fewer'}"
    )
    before = pinned.measured.sliced_reading
    if sliced is None or before is None:
        worse = "; perplexities are compared when both are measured"
    else:
        about = "" if _is_whole(sliced) and _is_whole(before) else "about "
        worse = f", perplexity {about}<b>{signed(sliced.value - before.value, lambda value: f'{value:.1f}')}</b>"
    return f' <span class="isx-beside">Against <b>A</b> ({escape(pinned.words)}): {weights}{worse}.</span>'


def signed(change: float, words: Callable[[float], str]) -> str:
    """A difference with its sign, and the unit that `words` gives: `−10.6 M`."""
    shown = words(abs(change))
    return "0" if shown == words(0) else f"{'+' if change > 0 else '−'}{shown}"


def _is_whole(reading: Reading) -> bool:
    return reading.windows == reading.of
