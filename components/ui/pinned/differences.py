"""The name of the pinned setting A, and the differences of the current setting from it, as text. Pure functions."""

from __future__ import annotations

from collections.abc import Callable
from html import escape

from ...i18n.language import gettext, number, percentage
from ...state.settings import CONTROLS, Settings
from ...state.views import PinnedView, Reading
from ..labels import ESTIMATORS


def name_of(pinned: Settings, settings: Settings) -> str:
    """A's name, such as "20 %, Fisher, sequential": sparsity, estimator, and all else that differs from `settings`."""
    estimator = gettext("manual") if pinned.locked else ESTIMATORS.get(pinned.estimator, pinned.estimator)
    names = sorted(CONTROLS, key=lambda name: CONTROLS[name].calibrates)  # the slice's first
    values = {name: getattr(pinned, name) for name in names if getattr(pinned, name) != getattr(settings, name)}
    others = [describe(value) for name, value in values.items() if (describe := CONTROLS[name].describe)]
    return ", ".join([percentage(pinned.sparsity), estimator, *others])


def sentence(
    parameters: int, sliced: Reading | None, pinned: PinnedView | None, format_count: Callable[[float], str]
) -> str:
    """How a sliced model differs from A's (HTML); empty if no setting is pinned.

    Args:
        parameters: of the sliced model.
        sliced: its perplexity.
    """
    if pinned is None:
        return ""
    change = parameters - pinned.plan.parameters_sliced
    count = format_count(abs(change))
    if change == 0:
        weights = gettext("the same number of parameters")
    else:
        weights = (
            gettext("{count} more parameters", count=count)
            if change > 0
            else gettext("{count} fewer parameters", count=count)
        )
    before = pinned.measured.sliced
    if sliced is None or before is None:
        perplexity = gettext("; perplexities are compared when both are measured")
    else:
        difference = signed(sliced.value - before.value, lambda value: number(value, ".1f"))
        perplexity = (
            gettext(", perplexity <b>{change}</b>", change=difference)
            if _is_whole(sliced) and _is_whole(before)
            else gettext(", perplexity about <b>{change}</b>", change=difference)
        )
    text = gettext(
        "Against <b>A</b> ({words}): {weights}{worse}.", words=escape(pinned.name), weights=weights, worse=perplexity
    )
    return f' <span class="isx-beside">{text}</span>'


def signed(change: float, format_size: Callable[[float], str]) -> str:
    """A difference with its sign and its unit, such as `−10.6 M`; `format_size` formats its absolute value."""
    size = format_size(abs(change))
    return "0" if size == format_size(0) else f"{'+' if change > 0 else '−'}{size}"


def _is_whole(reading: Reading) -> bool:
    return reading.windows == reading.all_windows
