"""The page's first sentence: what the current setting removes, and what that costs. Pure: numbers in, HTML out."""

from __future__ import annotations

from html import escape
from operator import itemgetter

from ..i18n.language import gettext, lazy_gettext, translate
from ..state.views import Perplexities, PinnedView, PlanView
from . import formatting
from .labels import MODULES_IN_WORDS
from .pinned.differences import sentence

ESTIMATED = lazy_gettext(
    "Interpolated between perplexities measured at other sparsities; the measured value replaces it."
)


def headline(
    plan: PlanView | None,
    measured: Perplexities,
    hint: str = "",
    pinned: PinnedView | None = None,
    action: str = "",
) -> str:
    """One sentence on the current setting, and its differences from the pinned one (HTML).

    `hint` replaces an unknown sliced perplexity; `action` is a button after the sentence.
    """
    if plan is None:
        waiting = gettext(
            "There is nothing to show for this model with this calibration yet. Its ratios appear here once it is "
            "calibrated."
        )
        return f'<p class="isx-headline isx-nothing">{waiting}</p>'
    change = sentence(plan.parameters_sliced, measured.sliced, pinned, formatting.millions)
    dense, sliced = formatting.millions(plan.parameters_dense), formatting.millions(plan.parameters_sliced)
    perplexity = _perplexity(measured, hint)
    if plan.target_sparsity == 0:
        nothing = gettext(
            "Nothing is removed: <b>{dense}</b> parameters{perplexity}. Drag the slider.",
            dense=dense,
            perplexity=perplexity,
        )
        return f'<p class="isx-headline">{nothing}{action}{change}</p>'
    ratios = [
        (getattr(layer, module), name, index)
        for index, layer in enumerate(plan.layers)
        for module, name in MODULES_IN_WORDS.items()
    ]
    # of equal ones the first, in every language
    min_ratio, min_name, min_layer = min(ratios, key=itemgetter(0))
    max_ratio, max_name, max_layer = max(ratios, key=itemgetter(0))
    if max_ratio - min_ratio < 0.005:
        extremes = gettext("every layer is pruned by {most:.0%}", most=max_ratio)
    else:
        extremes = gettext(
            "layer {most_layer}'s {most_name} is pruned most ({most:.0%}), layer {least_layer}'s {least_name} "
            "least ({least:.0%})",
            most_layer=max_layer,
            most_name=max_name,
            most=max_ratio,
            least_layer=min_layer,
            least_name=min_name,
            least=min_ratio,
        )
    text = gettext(
        "<b>{removed:.0%}</b> of the layer parameters removed: <b>{dense}</b> → <b>{sliced}</b> "
        "parameters{perplexity}; {extremes}.",
        removed=plan.removed,
        dense=dense,
        sliced=sliced,
        perplexity=perplexity,
        extremes=extremes,
    )
    return f'<p class="isx-headline">{text}{action}{change}</p>'


def _perplexity(measured: Perplexities, hint: str) -> str:
    sliced = measured.sliced
    if sliced is None and measured.expected is not None:
        text = gettext(
            'about {expected:.1f}, <span title="{why}">an estimate</span>', expected=measured.expected, why=ESTIMATED
        )
    else:
        text = f"<b>{formatting.reading(sliced)}</b>" if sliced else escape(hint)
    term = f'<span title="{translate(formatting.PERPLEXITY)}">{gettext("perplexity")}</span>'
    if measured.dense is None:
        return gettext("; {perplexity} {value}", perplexity=term, value=text) if text else ""
    text += _progress(measured)
    on_text = gettext("on {text}", text=escape(translate(measured.text)))
    where = f'<span title="{escape(translate(measured.protocol))}">{on_text}</span>'
    if measured.source.kind == "before":
        where += gettext(", precomputed on {day}", day=measured.source.day)
    dense = formatting.reading(measured.dense)
    values = {"perplexity": term, "dense": dense, "sliced": text or "…", "where": where}
    return gettext("; {perplexity} <b>{dense}</b> → {sliced} ({where})", **values)


def _progress(measured: Perplexities) -> str:
    """How much of the windows and of the calibration a sliced perplexity is from; empty if it is from all."""
    sliced, source, text = measured.sliced, measured.source, ""
    if sliced and not sliced.is_whole:
        text += gettext(" after {windows:g} of {of} windows", windows=sliced.windows, of=sliced.all_windows)
    if sliced and source.sequences < source.all_sequences:
        text += gettext(
            ", calibrated on {sequences} of {all_sequences} sequences",
            sequences=source.sequences,
            all_sequences=source.all_sequences,
        )
    return text


def measure_button(measured: Perplexities) -> str:
    """A button that measures here what is precomputed (HTML); it presses the hidden one of the page's frame."""
    if measured.source.kind != "before":
        return ""
    return f' <button type="button" class="isx-link" data-press="measure-here">{gettext("Measure here")}</button>'
