"""The Sweep tab: perplexity of many models against what was removed of them, and against their measured speed."""

from __future__ import annotations

import time
from collections.abc import Iterator
from functools import partial
from html import escape
from typing import Any, NamedTuple

import gradio as gr

from components.frame.context import CHEAP, HEAVY, PRIVATE, Context
from components.gradio_compat.browser.on_latest import on_latest
from components.gradio_compat.signatures import partial_handler
from components.i18n.language import LazyString, gettext, lazy_gettext, translate
from components.jobs.limits import told
from components.jobs.status import Status
from components.jobs.turns import Urgency
from components.state import choices
from components.state.request import Request
from components.state.session import Session
from components.sweep import measure
from components.sweep.charts import removed_chart, speed_chart
from components.sweep.views import SweepChoice, SweepView
from components.ui import formatting
from components.ui.chart_bridge import chart
from components.ui.downloads import SAVE, Downloads
from components.ui.explainers import fold
from components.ui.handlers import LiveOutput, only_if_active, spread_settings, unchanged
from components.ui.labels import ESTIMATORS, METHODS

SPARSITIES = (5, 10, 15, 20, 25, 30, 35, 40, 50, 60)


class Shown(NamedTuple):
    """How far the sweep is: words (HTML) and two charts (JSON)."""

    progress: Any
    removed: Any
    fast: Any


class Swept(NamedTuple):
    """The page's status, and how far the sweep is."""

    status: Any
    progress: Any
    removed: Any
    fast: Any


class Picked(NamedTuple):
    """What a click on a point sets."""

    sparsity: Any
    estimator: Any
    locked: Any
    refresh: Any


class SweepPanel(NamedTuple):
    """The tab's components."""

    choice: tuple[gr.CheckboxGroup, gr.CheckboxGroup, gr.CheckboxGroup, gr.Checkbox]  # the fields of a SweepChoice
    shown: Shown
    run: gr.Button
    cancel: gr.Button
    csv: gr.Button
    file: gr.DownloadButton


def build(session: Session, first: Request) -> SweepPanel:
    """What to sweep over, its progress, two charts. Called inside a `gr.Tab`."""
    usual = SweepChoice()
    with_estimator = [name for name, method in choices.METHODS.items() if method.uses_estimator]
    gr.HTML(LazyString(_lead), apply_default_css=False)
    with gr.Row(elem_id="sweep-choice"):
        methods = gr.CheckboxGroup(
            METHODS.options(), value=list(usual.methods), label=lazy_gettext("Methods"), min_width=260
        )
        estimators = gr.CheckboxGroup(
            ESTIMATORS.options(),
            value=list(usual.estimators),
            label=LazyString(lambda: _estimators(with_estimator)),
            min_width=260,
        )
        percents = [(f"{percent} %", percent) for percent in SPARSITIES]
        sparsities = gr.CheckboxGroup(
            percents, value=list(usual.sparsities), label=lazy_gettext("Removed"), min_width=260
        )
    speed = gr.Checkbox(
        usual.speed, label=lazy_gettext("Measure speed too (takes longer)"), container=False, elem_id="sweep-speed"
    )
    with gr.Row(equal_height=True, elem_id="sweep-buttons"):
        run = gr.Button(lazy_gettext("Run the sweep"), variant="primary", elem_id="sweep-run", min_width=160, scale=0)
        cancel = gr.Button(lazy_gettext("Cancel"), elem_id="sweep-cancel", min_width=100, scale=0)
        csv = gr.Button(lazy_gettext("Save CSV"), elem_id="sweep-csv", min_width=120, scale=0)
    file = gr.DownloadButton(visible="hidden")
    progress = gr.HTML(elem_id="sweep-progress", apply_default_css=False)
    removed = chart(height=440, elem_id="sweep-chart")
    fast = chart(height=360, elem_id="sweep-speed-chart")
    fold("sweep")
    return SweepPanel(
        choice=(methods, estimators, sparsities, speed),
        shown=Shown(progress, removed, fast),
        run=run,
        cancel=cancel,
        csv=csv,
        file=file,
    )


def preview(
    session: Session,
    request: Request,
    methods: list[str],
    estimators: list[str],
    sparsities: list[float],
    speed: bool,
) -> Shown:
    """What is there of this sweep already, and how long the rest will take."""
    choice = SweepChoice(methods, estimators, sparsities, speed)
    try:
        return _shown(measure.known(session, request, choice), measure.seconds(session, request, choice))
    except ValueError as problem:  # not calibrated yet, or a choice of nothing
        return Shown(f'<p class="isx-quiet">{escape(translate(told(problem)))}</p>', "", "")


def show_pinned(session: Session, request: Request, layer: int, client: str) -> Shown:
    """The pinned setting's own point of a sweep, where one has measured it; ratios given by hand have none."""
    choice = SweepChoice(("intraslice",), (request.slicing.estimator,), (request.settings.sparsity,), speed=True)
    try:
        view = measure.known(session, request, choice)
    except ValueError:  # not calibrated yet
        return unchanged(Shown)
    return unchanged(Shown) if request.slicing.locked or not view.points else _shown(view)


def sweep(
    session: Session,
    request: Request,
    methods: list[str],
    estimators: list[str],
    sparsities: list[float],
    speed: bool,
    client: str,
) -> Iterator[Swept]:
    """Measure perplexity, and speed if asked, of every method x estimator x sparsity (per cent).

    Points that are measured already are read from the disk; a sweep that was stopped goes on where it was. Yields
    two status lines (HTML) and two charts (JSON).
    """
    view: SweepView | None = None
    choice = SweepChoice(methods, estimators, sparsities, speed)
    work = partial(measure.run_sweep, session=session, request=request, choice=choice)
    for event in session.jobs.run(client, "sweep", work, urgency=Urgency.BACKGROUND):
        if isinstance(event, Status):
            line = formatting.status(event)
            done = line if event.kind != "ready" or view is None else _done(view)
            yield unchanged(Swept)._replace(status=line, progress=done)
        else:
            view = event
            charts = _shown(view)
            yield unchanged(Swept)._replace(removed=charts.removed, fast=charts.fast)


def save(
    session: Session,
    downloads: Downloads,
    request: Request,
    methods: list[str],
    estimators: list[str],
    sparsities: list[float],
    speed: bool,
) -> str:
    """The points of a sweep that are measured already, as a CSV file."""
    choice = SweepChoice(methods, estimators, sparsities, speed)
    return str(downloads.put("sweep.csv", lambda path: measure.write_csv(session, request, choice, path)))


def stop(session: Session, client: str) -> None:
    """Stop the sweep at its next step."""
    session.jobs.halt(client, "sweep")


def pick(event: gr.EventData) -> Picked:
    """The setting of the point that was clicked, for the controls."""
    percent, *estimator = event.pick.split()
    return Picked(float(percent), estimator[0] if estimator else gr.skip(), "", str(time.time()))


def connect(panel: SweepPanel, context: Context) -> None:
    """Attach the tab's handlers. Called inside the `gr.Blocks()` that holds the panel."""
    session, controls = context.session, context.controls
    asking = [*controls.settings, *panel.choice]
    seen = {
        "fn": only_if_active("sweep", unchanged(Shown), preview, session),
        "inputs": [*asking, context.tab],
        "outputs": [*panel.shown],
        **CHEAP,
        **PRIVATE,
    }
    changed = [component.change for component in panel.choice]
    on_latest([*changed, *context.on_options_commit, controls.iterative.input], **seen)
    for end in (context.opened["sweep"], *context.prepared):
        end.then(**seen)
    context.live_outputs.append(LiveOutput("sweep", partial_handler(show_pinned, session), panel.shown))
    swept = [*Swept(context.status, *panel.shown)]
    context.pinned_known.append(
        panel.run.click(spread_settings(sweep, session), asking, swept, api_name="sweep", **HEAVY)
    )
    panel.cancel.click(partial_handler(stop, session), None, None, **CHEAP, **PRIVATE)
    saved = panel.csv.click(
        spread_settings(save, session, context.downloads), asking, panel.file, api_name="sweep_csv", **CHEAP
    )
    saved.success(None, panel.file, None, js=SAVE, **CHEAP)
    picked = Picked(controls.sparsity, controls.estimator, controls.locked, context.refresh)
    for points in (panel.shown.removed, panel.shown.fast):
        points.select(pick, None, [*picked], **CHEAP, **PRIVATE)


def _shown(view: SweepView, seconds: float = 0.0) -> Shown:
    missing = view.wanted - len(view.points)
    words = gettext("All {total} points are measured.", total=view.wanted)
    if missing:
        words = gettext(
            "{missing} of {total} points are not measured yet: about {time} on this machine.",
            missing=missing,
            total=view.wanted,
            time=formatting.seconds(seconds),
        )
    timed = any(point.prefill is not None for point in view.points)
    return Shown(
        progress=f'<p class="isx-quiet">{words}</p>',
        removed=removed_chart(view).to_json() if view.points else "",
        fast=speed_chart(view).to_json() if timed else "",
    )


def _done(view: SweepView) -> str:
    if len(view.points) == view.wanted:
        return _shown(view).progress
    done = len(view.points)
    told = gettext(
        "Stopped after {done} of {total} points. Run the sweep continues from there.", done=done, total=view.wanted
    )
    return f'<p class="isx-quiet">{told}</p>'


def _lead() -> str:
    told = gettext(
        "Slice the model many times and compare what each removed percentage point costs each method. Bias, "
        "cap, shapes, order and recovery are those of the controls; manual ratios are ignored."
    )
    return f'<p class="isx-lead">{told}</p>'


def _estimators(methods: list[str]) -> str:
    named = gettext(" and ").join(METHODS[method] for method in methods)
    return gettext("Ratio estimators ({methods})", methods=named)
