"""What the pinned setting A is called, and how another one differs from it, in words. Pure."""

from __future__ import annotations

from collections.abc import Callable
from html import escape
from pathlib import Path

from components.i18n.language import gettext, lazy_gettext, number
from components.state.settings import Settings
from components.state.views import Beside, Reading
from components.ui.labels import ESTIMATORS, RECOVERIES, Terms

ORDERS = Terms({"one-shot": lazy_gettext("one-shot"), "sequential": lazy_gettext("sequential")})
SHAPES = Terms({"free": lazy_gettext("free shapes"), "runtime": lazy_gettext("runtime shapes")})

# What is told of A beside its sparsity and estimator, where the current setting has it otherwise.
FIELDS: dict[str, Callable[[Settings], str]] = {
    "bias": lambda pinned: (
        gettext("automatic bias") if pinned.bias is None else gettext("bias {bias:g}", bias=pinned.bias)
    ),
    "cap": lambda pinned: gettext("cap {cap:g} %", cap=pinned.cap),
    "shapes": lambda pinned: SHAPES[pinned.shapes],
    "order": lambda pinned: ORDERS[pinned.order],
    "recovery": lambda pinned: gettext("recovery: {name}", name=RECOVERIES[pinned.recovery]),
    "iterative": lambda pinned: gettext("MLPs refined") if pinned.iterative else gettext("MLPs not refined"),
    "text": lambda pinned: gettext("text {name}", name=Path(pinned.text).name),
    "upload": lambda pinned: gettext("your own text") if pinned.upload else gettext("no text of your own"),
    "sequences": lambda pinned: gettext("{sequences} sequences", sequences=pinned.sequences),
    "length": lambda pinned: gettext("of {length} tokens", length=pinned.length),
    "seed": lambda pinned: gettext("seed {seed}", seed=pinned.seed),
    "dtype": lambda pinned: pinned.dtype,
}


def name_of(pinned: Settings, settings: Settings) -> str:
    """`20 %, Fisher, sequential`: A, with whatever else tells it from the current setting."""
    estimator = gettext("manual") if pinned.locked else ESTIMATORS.get(pinned.estimator, pinned.estimator)
    others = [tell(pinned) for name, tell in FIELDS.items() if getattr(pinned, name) != getattr(settings, name)]
    return ", ".join([f"{number(pinned.sparsity, 'g')} %", estimator, *others])


def sentence(parameters: int, sliced: Reading | None, pinned: Beside | None, words: Callable[[float], str]) -> str:
    """How a model of so many parameters differs from A's (HTML), nothing where no setting is pinned."""
    if pinned is None:
        return ""
    change = parameters - pinned.plan.parameters_sliced
    count = words(abs(change))
    if change == 0:
        weights = gettext("equally many parameters")
    else:
        weights = (
            gettext("{count} parameters more", count=count)
            if change > 0
            else gettext("{count} parameters fewer", count=count)
        )
    before = pinned.measured.sliced_reading
    if sliced is None or before is None:
        worse = gettext("; perplexities are compared when both are measured")
    else:
        more = signed(sliced.value - before.value, lambda value: number(value, ".1f"))
        whole = _is_whole(sliced) and _is_whole(before)
        worse = (
            gettext(", perplexity <b>{change}</b>", change=more)
            if whole
            else gettext(", perplexity about <b>{change}</b>", change=more)
        )
    told = gettext(
        "Against <b>A</b> ({words}): {weights}{worse}.", words=escape(pinned.words), weights=weights, worse=worse
    )
    return f' <span class="isx-beside">{told}</span>'


def signed(change: float, words: Callable[[float], str]) -> str:
    """A difference with its sign, and the unit that `words` gives: `−10.6 M`."""
    shown = words(abs(change))
    return "0" if shown == words(0) else f"{'+' if change > 0 else '−'}{shown}"


def _is_whole(reading: Reading) -> bool:
    return reading.windows == reading.of
