"""What the page shows outside of the tabs, drawn from a view: headline, readout, status. Pure: numbers in, HTML out."""

import hashlib
import json
import math
from collections.abc import Mapping
from html import escape
from operator import itemgetter
from pathlib import Path

import gradio as gr

from ..i18n.language import gettext, lazy_gettext, number, percentage, translate
from ..state.settings import Settings
from ..state.views import Perplexities, PinnedView, PlanView, Reading, View
from . import formatting, pinned_text
from .labels import ESTIMATORS, MODULES_IN_WORDS
from .pinned_text import name_of

ESTIMATED = lazy_gettext(
    "Interpolated between perplexities measured at other sparsities; the measured value replaces it."
)


def newest(value: str, elem_id: str) -> gr.HTML:
    """A component that shows the newest of the texts that handlers return, in whatever order they arrive."""
    # It may be drawn before the page's script has run.
    template = f"${{window.isx?.newest?.('{elem_id}', value) ?? value}}"
    return gr.HTML(value, html_template=template, elem_id=elem_id, apply_default_css=False)


def numbered(view: View, drawn: Mapping[str, str]) -> dict[str, str]:
    """Texts with the number of their view."""
    return {name: formatting.numbered(view.status.number, text) for name, text in drawn.items()}


def texts(view: View) -> dict[str, str]:
    """All other texts, without a number; for a setting that the model does not allow, a headline that says so."""
    if view.problem is not None:
        return {"headline": formatting.problem(view.problem)}
    plan, measured, pinned = view.plan, view.perplexities, _pinned(view)
    return {
        "readout": formatting.readout(plan, measured, pinned) + chosen(view) + record(view),
        "headline": headline(plan, measured, _hint(view), pinned, measure_button(measured)),
        "removed": formatting.removed(plan),
        "perplexity": formatting.protocol(measured),
    }


def chosen(view: View) -> str:
    """How the estimator was chosen, if it was by measurement or shall be (HTML)."""
    request, choice, text = view.request, view.request.calibration.choice, ""
    if request.is_undecided:
        text = gettext(
            "Once the calibration is complete, the estimator is chosen by measurement; until then it is {estimator}.",
            estimator=ESTIMATORS[request.slicing.estimator],
        )
    elif choice is not None and choice.name == request.slicing.estimator:
        others = (
            f"{ESTIMATORS[name]} {formatting.signed(100 * value, lambda percent: number(percent, '.1f'))} ± "
            f"{percentage(round(100 * error, 1))}"
            for name, (value, error) in choice.excess.items()
        )
        text = gettext(
            "{estimator} was chosen by measurement. At 30% the others have a higher KL: {others}.",
            estimator=ESTIMATORS[choice.name],
            others=", ".join(others),
        )
    return f'<p class="isx-quiet" data-chosen>{escape(text)}</p>' if text else ""


def record(view: View) -> str:
    """The setting and what is measured of it, for `assets/tried/store.js`, and where these are listed (HTML)."""
    plan, measured, request = view.plan, view.perplexities, view.request
    if plan is None or measured.basis is None:
        return ""
    settings, basis = request.named, measured.basis
    common = {name: getattr(settings, name) for name in ("model", "text", "upload", "length", "dtype")}  # in the basis
    dense, sliced = (value if value and math.isfinite(value) else None for value in measured.values)
    costs = measured.costs if measured.source.kind == "before" else None
    values = {
        "name": name_of(settings, Settings(**common)),
        "setting": pinned_text.write(request.with_settings(dtype=request.calibration.dtype)),
        "removed": plan.removed,
        "parameters": plan.parameters_sliced,
        "dense": dense,
        "perplexity": sliced,
        "kl": measured.divergence if costs is None else costs.divergence,
        "source": measured.source.kind,
        "key": hashlib.sha256(repr([*basis]).encode()).hexdigest()[:16],
        "model": settings.model,
        "text": Path(basis.text).name,
        "tokens": basis.tokens,
        "window": basis.window,
        "dtype": basis.dtype,
    }
    earlier = gettext("Settings measured earlier are listed on the Sweep tab.")
    return f'<p class="isx-quiet" data-measured="{escape(json.dumps(values))}">{earlier}</p>'


def _pinned(view: View) -> PinnedView | None:
    """The pinned setting, unless it has no plan, for example because it was possible with another calibration."""
    pinned = view.pinned
    if pinned is None or pinned.plan is None:
        return None
    return PinnedView(name_of(pinned.request.settings, view.request.settings), pinned.plan, pinned.perplexities)


def _hint(view: View) -> str:
    """What stands for an unknown perplexity: what runs, or the user's action that measures it."""
    request, measured = view.request, view.perplexities
    if view.plan is not None and view.plan.source.kind != "here" and measured.sliced is None:
        return gettext("follows in a moment") if measured.protocol else gettext("appears once the model is loaded")
    if view.is_measuring:
        return gettext("… (being measured)")
    if request.is_live:
        return gettext("… when you release the slider")
    one_shot = request.slicing.order == "one-shot"
    return gettext("… press “Slice and train”") if one_shot else gettext("… press “Slice sequentially”")


def headline(
    plan: PlanView | None, measured: Perplexities, hint: str = "", pinned: PinnedView | None = None, action: str = ""
) -> str:
    """A sentence on the setting, then a button (`action`) and what differs from A; `hint` if no perplexity is known."""
    if plan is None:
        waiting = gettext(
            "There is nothing to show for this model with this calibration yet. Its ratios appear here once it is "
            "calibrated."
        )
        return f'<p class="isx-headline isx-nothing">{waiting}</p>'
    change = _against_pinned(plan, measured.sliced, pinned)
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
        "<b>{removed}</b> of the layer parameters removed: <b>{dense}</b> → <b>{sliced}</b> "
        "parameters{perplexity}; {extremes}.",
        removed=formatting.share(plan.removed),
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


def _against_pinned(plan: PlanView, sliced: Reading | None, pinned: PinnedView | None) -> str:
    """How a sliced model with a perplexity differs from A's (HTML); empty if no setting is pinned."""
    if pinned is None:
        return ""
    change = plan.parameters_sliced - pinned.plan.parameters_sliced
    count = formatting.millions(abs(change))
    weights = gettext("the same number of parameters")
    if change > 0:
        weights = gettext("{count} more parameters", count=count)
    elif change < 0:
        weights = gettext("{count} fewer parameters", count=count)
    before = pinned.measured.sliced
    perplexity = gettext("; perplexities are compared when both are measured")
    if sliced is not None and before is not None:
        difference = formatting.signed(sliced.value - before.value, lambda value: number(value, ".1f"))
        perplexity = gettext(", perplexity about <b>{change}</b>", change=difference)
        if sliced.is_whole and before.is_whole:
            perplexity = gettext(", perplexity <b>{change}</b>", change=difference)
    text = gettext(
        "Against <b>A</b> ({words}): {weights}{worse}.", words=escape(pinned.name), weights=weights, worse=perplexity
    )
    return f' <span class="isx-beside">{text}</span>'
