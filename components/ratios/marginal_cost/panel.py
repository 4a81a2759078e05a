"""*What does one more parameter cost?* in *Was it right?*: chart, the best exchange, and where other plans part."""

from __future__ import annotations

from collections.abc import Iterator
from html import escape
from typing import Any, NamedTuple

import gradio as gr

from components.frame.context import CHEAP, HEAVY, PRIVATE, Context
from components.gradio_compat.signatures import partial_handler
from components.i18n.language import LazyString, gettext, lazy_gettext, translate
from components.ratios.prices.chart import price_chart
from components.ratios.prices.measure import PriceViews
from components.ratios.prices.views import ModulePrice, OtherPlan, PriceView
from components.state.request import Request
from components.state.session import Session
from components.ui import formatting
from components.ui.chart_bridge import chart
from components.ui.explainers import fold
from components.ui.handlers import LiveOutput, spread_settings, unchanged
from components.ui.labels import ESTIMATORS, MODULES_IN_WORDS

PATIENCE = lazy_gettext("Other measurements wait meanwhile. Finished parts are kept when you cancel.")


class Shown(NamedTuple):
    """Outputs of `show`."""

    chart: Any
    words: Any
    job: Any  # the row of buttons, while there is something to measure


class Measured(NamedTuple):
    """Outputs of `measure`."""

    chart: Any
    words: Any
    job: Any
    progress: Any


class PricesPanel(NamedTuple):
    """The section's components, and where their numbers come from."""

    prices: PriceViews
    shown: Shown
    measure: gr.Button
    cancel: gr.Button
    progress: gr.HTML


def show(prices: PriceViews, request: Request, layer: int, client: str) -> Shown:
    """Measured and foretold prices of this slice, where they are known: chart (JSON), words (HTML)."""
    try:
        view = prices.known(request)
    except ValueError:  # the first line says what is wrong with the setting
        return unchanged(Shown)
    points = price_chart(view, request.slicing.estimator, int(layer)).to_json()
    return Shown(points, catalogue(view), gr.update(visible=view is None))


def measure(prices: PriceViews, request: Request, layer: int, client: str) -> Iterator[Measured]:
    """Cut each module of the slice further and less; yields chart (JSON), words and progress (HTML). Takes minutes."""
    for event in prices.measure(request, client):
        if isinstance(event, PriceView):
            yield Measured(*show(prices, request, layer, client), progress="")
        else:
            patience = f'<p class="isx-quiet">{translate(PATIENCE)}</p>' if event.kind == "busy" else ""
            yield unchanged(Measured)._replace(progress=formatting.status(event) + patience)


def stop(session: Session, client: str) -> None:
    """Stop the measurement at its next step."""
    session.jobs.halt(client, "prices")


def build(session: Session, first: Request) -> PricesPanel:
    """Chart, words, and the job's buttons, with what is known of `first`. Called inside the Ratios tab."""
    prices = PriceViews(session)
    view, estimator = prices.known(first), first.slicing.estimator
    points = chart(LazyString(lambda: price_chart(view, estimator).to_json()), height=440, elem_id="price-chart")
    words = gr.HTML(LazyString(lambda: catalogue(view)), elem_id="price-words", apply_default_css=False)
    with gr.Row(elem_classes="isx-job", visible=view is None) as job:
        button = gr.Button(lazy_gettext("Measure marginal costs"), size="md", elem_id="price-measure", min_width=210)
        cancel = gr.Button(lazy_gettext("Cancel"), size="md", elem_id="price-cancel", min_width=70)
    progress = gr.HTML(elem_id="price-progress", apply_default_css=False)
    fold("prices")
    return PricesPanel(prices, Shown(points, words, job), button, cancel, progress)


def connect(panel: PricesPanel, context: Context) -> None:
    """Show what is known whenever it may have changed; measure on request."""
    context.choose_layer_by(panel.shown.chart)
    context.subscribe(LiveOutput("ratios", partial_handler(show, panel.prices), panel.shown), context.on_commit)
    inputs = [*context.controls.settings, context.controls.layer]
    outputs = [*Measured(*panel.shown, panel.progress)]
    panel.measure.click(spread_settings(measure, panel.prices), inputs, outputs, api_name="prices", **HEAVY)
    panel.cancel.click(partial_handler(stop, context.session), None, None, **PRIVATE, **CHEAP)


def catalogue(view: PriceView | None) -> str:
    """The best exchange there is, and where other estimators' plans of equal size part from this one (HTML)."""
    if view is None:
        return ""
    lines = []
    if (best := view.exchanged) is not None:
        told = gettext(
            "Moving {fraction:.2%} of the layer parameters from {source} to {target} would change KL by "
            "<b>{change:+.4f} ± {error:.4f}</b> nats per token; KL of the whole slice is {divergence:.3f}.",
            fraction=best.share,
            source=_place(best.giver),
            target=_place(best.taker),
            change=best.change,
            error=best.error,
            divergence=view.divergence,
        )
        lines.append(f"<p>{told}</p>")
    lines += [_other(other) for other in view.others]
    return f'<div class="isx-words">{"".join(lines)}</div>'


def _other(other: OtherPlan) -> str:
    partings = "; ".join(
        gettext(
            "layer {layer}'s {module}, {here:.0%} here and {there:.0%} there",
            layer=one.layer,
            module=MODULES_IN_WORDS[one.module],
            here=one.ratio,
            there=one.other,
        )
        for one in other.partings
    )
    told = gettext(
        "The {estimator} ratios of equal size differ most from these on {differences}. By these marginal costs "
        "(linear, for small steps), adopting them would change KL by <b>{change:+.3f} ± {error:.3f}</b>.",
        estimator=escape(ESTIMATORS[other.estimator]),
        differences=partings,
        change=other.change,
        error=other.error,
    )
    return f"<p>{told}</p>"


def _place(price: ModulePrice) -> str:
    return gettext("layer {layer}'s {module}", layer=price.layer, module=MODULES_IN_WORDS[price.module])
