"""The Activations tab: how far intra-module and cross-module slicing move the activations, at equal parameters."""

from __future__ import annotations

from collections.abc import Iterator
from html import escape
from typing import Any, NamedTuple

import gradio as gr

from components.activations.charts import QUESTIONS, finding, histogram_chart, protocol, shift_chart
from components.activations.measure import ShiftViews
from components.activations.views import ShiftView
from components.frame.context import Context
from components.gradio_compat.signatures import partial_handler
from components.i18n.language import gettext, lazy_gettext, translate
from components.state.request import Request
from components.state.session import Session
from components.ui import figure, formatting
from components.ui.chart_bridge import chart
from components.ui.explainers import fold
from components.ui.handlers import LiveOutput, at_opening, unchanged

NOTHING = lazy_gettext("Measured when the model is calibrated and sliced.")


class Shown(NamedTuple):
    """Outputs of `show`."""

    words: Any
    shift: Any
    histograms: Any


class Measured(NamedTuple):
    """Outputs of `measure`."""

    status: Any
    words: Any
    shift: Any
    histograms: Any


class ActivationsPanel(NamedTuple):
    """The tab's components, and where their numbers come from."""

    views: ShiftViews
    shown: Shown


def show(views: ShiftViews, request: Request, layer: int, client: str) -> Shown:
    """What is measured: words (HTML), shift by layer and the chosen layer's histograms (JSON)."""
    try:
        view = views.view(request, client)
    except ValueError:  # the first line says what is wrong with the setting
        return unchanged(Shown)
    words = _words(views, request, view)
    if view is None:
        return Shown(
            words, *(figure.waiting(asked(layer), translate(NOTHING)).to_json() for asked in QUESTIONS.values())
        )
    return Shown(words, **_drawn(view, layer))


def show_pinned(views: ShiftViews, request: Request, layer: int, client: str) -> Shown:
    """Both charts (JSON) where this very setting is measured; what was seen last says nothing of it."""
    view = views.exactly(request)
    return unchanged(Shown) if view is None else unchanged(Shown)._replace(**_drawn(view, layer))


def measure(views: ShiftViews, request: Request, layer: int, client: str) -> Iterator[Measured]:
    """Slice by both methods and measure each; yields status and words (HTML) and both charts (JSON)."""
    if not views.may_measure(request):
        return
    before = None
    for event in views.measure(request, client):
        now = show(views, request, layer, client)
        # The line is the perplexity's own as long as that is being measured beside.
        status = formatting.status(event) if event.kind != "busy" or views.is_read(request) else gr.skip()
        yield Measured(status, *(unchanged(Shown) if now == before else now))
        before = now


def measure_pinned(
    views: ShiftViews, request: Request, layer: int, pinned: Request | None, client: str
) -> Iterator[Measured]:
    """The same for the pinned setting, where it is not known; its charts are ghosts over the others."""
    if pinned is None or views.exactly(pinned) is not None or not views.may_measure(pinned):
        return
    for event in views.measure(pinned, client):
        yield unchanged(Measured)._replace(status=formatting.status(event))


def build(session: Session, first: Request) -> ActivationsPanel:
    """Two charts with what is known of `first`, each with its fold. Called inside a `gr.Tab`."""
    views = ShiftViews(session)
    opening = at_opening(lambda: show(views, first, 0, ""))
    words = gr.HTML(opening.words, elem_id="shift-words", apply_default_css=False)
    shift = chart(opening.shift, height=540, elem_id="shift-chart")
    fold("shift")
    histograms = chart(opening.histograms, height=330, elem_id="histogram-chart", table=True)
    fold("histograms")
    return ActivationsPanel(views, Shown(words, shift, histograms))


def connect(panel: ActivationsPanel, context: Context) -> None:
    """What is known follows at once, the measurement beside that of the slice, while the tab is in view."""
    live_output = LiveOutput(
        "activations", partial_handler(show, panel.views), panel.shown, partial_handler(show_pinned, panel.views)
    )
    context.subscribe(live_output, [*context.on_commit, context.controls.layer.change])
    measured = Measured(context.status, *panel.shown)
    ends = context.beside("activations", measured, [measure, measure_pinned], panel.views)
    context.pinned_known.extend(ends)
    context.choose_layer_by(panel.shown.shift)


def _drawn(view: ShiftView, layer: int) -> dict[str, str]:
    charts = {"shift": shift_chart(view, int(layer)), "histograms": histogram_chart(view, int(layer))}
    return {name: chart.to_json() for name, chart in charts.items()}


def _words(views: ShiftViews, request: Request, view: ShiftView | None) -> str:
    measured, percent = views.is_measured(request), request.settings.sparsity
    opening = view is not None and bool(view.snapshot) and request.is_default
    if request.slicing.sparsity == 0:
        ahead = gettext("At 0 % nothing is removed, so nothing shifts. Drag the slider. ")
    elif measured or opening:
        ahead = ""
    elif not request.is_live and request.slicing.order == "one-shot":
        ahead = gettext('For {sparsity:g} % with recovery, press "Slice and train". ', sparsity=percent)
    elif not request.is_live:
        ahead = gettext('For {sparsity:g} % in the sequential order, press "Slice as in the paper". ', sparsity=percent)
    else:
        ahead = gettext("For {sparsity:g} % this is measured when you release the slider. ", sparsity=percent)
    if view is None:
        return f'<p class="isx-words">{escape(ahead)}</p>'
    found = gettext(
        "At {target:.0%} slicing changes a token's residual stream, relative to its length and averaged over "
        "the layers: {finding}.",
        target=view.asked,
        finding=finding(view),
    )
    measured_on = f"{protocol(view)} {translate(view.missing)}"
    told = f'<p class="isx-words" data-percent="{100 * view.asked:g}">{escape(ahead + found)}</p>'
    return f'{told}<p class="isx-quiet">{escape(measured_on)}</p>'
