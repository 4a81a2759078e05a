"""What the page shows outside of the tabs, drawn from a view. Pure: a view in, HTML out."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping
from html import escape
from pathlib import Path

import gradio as gr

from ..i18n.language import gettext
from ..state.settings import Settings
from ..state.views import PinnedView, View
from . import formatting
from .headline import headline, measure_button
from .pinned import text as pinned_text
from .pinned.differences import name_of

TEXTS = ("readout", "headline", "removed", "perplexity")  # that depend on the settings


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
        "readout": formatting.readout(plan, measured, pinned) + record(view),
        "headline": headline(plan, measured, _hint(view), pinned, measure_button(measured)),
        "removed": formatting.removed(plan),
        "perplexity": formatting.protocol(measured),
    }


def record(view: View) -> str:
    """The setting and what is measured of it, for `assets/tried/store.js` (HTML without text)."""
    plan, measured, request = view.plan, view.perplexities, view.request
    if plan is None or measured.basis is None:
        return ""
    settings, basis = request.settings, measured.basis
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
    return f'<i hidden data-measured="{escape(json.dumps(values))}"></i>'


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
