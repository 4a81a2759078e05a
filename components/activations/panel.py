"""The Activations tab: how far intra-module and cross-module slicing shift the activations, at equal parameters."""

from html import escape

import gradio as gr

from ..frame.context import HEAVY, Context, tell
from ..gradio_compat.browser.on_latest import on_latest
from ..gradio_compat.signatures import partial_handler
from ..i18n.language import gettext, lazy_gettext, translate
from ..state.request import Request
from ..state.session import Session
from ..ui import figure, formatting
from ..ui.chart_bridge import chart
from ..ui.explainers import fold
from ..ui.handlers import LiveOutput, Updates, status_line
from .charts import TITLES, finding, histogram_chart, protocol, shift_chart
from .measure import ShiftViews
from .views import ShiftView

NOTHING = lazy_gettext("Appears once the model is calibrated and sliced.")


class ActivationsPanel:
    """Two charts, empty until the tab is opened, each with an explanation; created inside a `gr.Tab`."""

    def __init__(self, session: Session, first: Request) -> None:
        self.views = ShiftViews(session)
        summary = gr.HTML(elem_id="shift-words", apply_default_css=False)
        shift = chart(height=540, elem_id="shift-chart")
        fold("shift")
        histograms = chart(height=330, elem_id="histogram-chart", table=True)
        fold("histograms")
        self.shown = {"summary": summary, "shift": shift, "histograms": histograms}  # as in the answers of `show`


def show(views: ShiftViews, request: Request, layer: int, client: str) -> dict[str, str]:
    """The measurement so far: summary (HTML), shift by layer and the chosen layer's histograms (JSON)."""
    try:
        view = views.view(request, client)
    except ValueError:  # the headline shows what is wrong with the setting
        return {}
    summary = _summary(views, request, view)
    if view is None:
        waiting = {name: figure.waiting(title(layer), translate(NOTHING)).to_json() for name, title in TITLES.items()}
        return {"summary": summary, **waiting}
    return {"summary": summary, **_charts(view, layer)}


def show_pinned(views: ShiftViews, request: Request, layer: int, client: str) -> dict[str, str]:
    """Both charts (JSON) if exactly this setting is measured; the last setting seen is no substitute."""
    view = views.exact_view(request)
    return {} if view is None else _charts(view, layer)


def measure(views: ShiftViews, request: Request, layer: int, client: str) -> Updates:
    """Slice by both methods and measure each; yields status and summary (HTML) and both charts (JSON)."""
    if not views.may_measure(request):
        return
    previous: dict[str, str] = {}
    for event in views.measure(request, client, request):
        layer = views.session.jobs.view_of(client, "layer", layer)
        current = {} if event.stopped else show(views, request, layer, client)
        yield {"status": status_line(event)} | ({} if current == previous else current)
        previous = current


def measure_pinned(views: ShiftViews, request: Request, layer: int, pinned: Request | None, client: str) -> Updates:
    """The same for the pinned setting, unless it is measured; its charts are drawn over the others."""
    if pinned is None or views.exact_view(pinned) is not None or not views.may_measure(pinned):
        return
    for event in views.measure(pinned, client, request):
        yield {"status": status_line(event)}


def connect(panel: ActivationsPanel, context: Context) -> None:
    """Show cached results at once; measure in parallel with the perplexity while the tab is active."""
    live_output = LiveOutput(
        "activations", partial_handler(show, panel.views), panel.shown, partial_handler(show_pinned, panel.views)
    )
    context.subscribe(live_output, [*context.on_commit, context.controls.layer.change])
    measured = {"status": context.status, **panel.shown}
    first, second = (
        context.call(handler, panel.views, outputs=measured, tab="activations", queue=HEAVY)
        for handler in (measure, measure_pinned)
    )
    events = [*context.on_commit, context.measured.change, context.opened["activations"].change]
    on_latest(events, **first).then(**second).then(**tell(context.pinned_measured))
    context.choose_layer_by(panel.shown["shift"])


def _charts(view: ShiftView, layer: int) -> dict[str, str]:
    charts = {"shift": shift_chart(view, int(layer)), "histograms": histogram_chart(view, int(layer))}
    return {name: chart.to_json() for name, chart in charts.items()}


def _summary(views: ShiftViews, request: Request, view: ShiftView | None) -> str:
    percent = request.settings.sparsity
    if request.slicing.sparsity == 0:
        hint = gettext("At 0% nothing is removed, so nothing shifts. Drag the slider. ")
    elif views.exact_view(request) is not None:
        hint = ""
    elif not request.is_live and request.slicing.order == "one-shot":
        hint = gettext("For {sparsity:g}% with recovery, press “Slice and train”. ", sparsity=percent)
    elif not request.is_live:
        hint = gettext("For {sparsity:g}% in the sequential order, press “Slice sequentially”. ", sparsity=percent)
    else:
        hint = gettext("For {sparsity:g}% this is measured when you release the slider. ", sparsity=percent)
    if view is None:
        return f'<p class="isx-words">{escape(hint)}</p>'
    result = gettext(
        "At {target:.0%} sparsity, the relative error of the residual stream, averaged over the layers, is: {finding}.",
        target=view.target_sparsity,
        finding=finding(view),
    )
    measured_on, source = f"{protocol(view)} {translate(view.missing)}", formatting.provenance(view.source)
    summary = f'<p class="isx-words" data-percent="{100 * view.target_sparsity:g}">{escape(hint + result)}</p>'
    return f'{summary}<p class="isx-quiet" data-source="{escape(source)}">{escape(measured_on)}</p>'
