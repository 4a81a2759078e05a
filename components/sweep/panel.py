"""The Sweep tab: perplexity of many models against parameters removed, size on disk, and measured speed."""

from __future__ import annotations

import time
from collections.abc import Iterator
from functools import partial
from html import escape
from typing import Any, NamedTuple

import gradio as gr

from ..frame.context import HEAVY, Context, every, in_browser, tell
from ..frame.handlers import stop
from ..gradio_compat.browser.on_latest import on_latest
from ..gradio_compat.signatures import partial_handler
from ..i18n.language import LazyString, gettext, lazy_gettext, percentage, translate
from ..jobs.limits import error_text
from ..jobs.status import Status
from ..jobs.turns import Urgency
from ..state import choices
from ..state.request import Request
from ..state.session import Session
from ..ui import formatting
from ..ui.chart_bridge import chart
from ..ui.downloads import SAVE, Downloads
from ..ui.explainers import fold
from ..ui.handlers import LiveOutput, status_line
from ..ui.labels import ESTIMATORS, METHODS
from . import measure
from .charts import MARKERS, type_name
from .leaderboard import panel as leaderboard
from .leaderboard.panel import LeaderboardPanel
from .size_chart import measured_charts
from .views import SweepChoice, SweepView

SPARSITIES = (5, 10, 15, 20, 25, 30, 35, 40, 50, 60)


class SweepPanel(NamedTuple):
    """The tab's components."""

    choice: dict[str, Any]  # by the fields of a `SweepChoice`
    shown: dict[str, gr.HTML]  # progress and charts, by name as in the answers of `preview`
    run: gr.Button
    cancel: gr.Button
    csv: gr.Button
    file: gr.DownloadButton
    leaderboard: LeaderboardPanel | None


def build(session: Session, first: Request) -> SweepPanel:
    """The choice of points, the progress and the charts. Called inside a `gr.Tab`."""
    default = SweepChoice()
    with_estimator = [name for name, method in choices.METHODS.items() if method.uses_estimator]
    gr.HTML(LazyString(_lead), apply_default_css=False)
    with gr.Row(elem_id="sweep-choice"):
        methods = gr.CheckboxGroup(
            METHODS.options(), value=list(default.methods), label=lazy_gettext("Methods"), min_width=260
        )
        estimators = gr.CheckboxGroup(
            ESTIMATORS.options(),
            value=list(default.estimators),
            label=LazyString(lambda: _estimators(with_estimator)),
            min_width=260,
        )
        percents = [(LazyString(partial(percentage, percent)), percent) for percent in SPARSITIES]
        sparsities = gr.CheckboxGroup(
            percents, value=list(default.sparsities), label=lazy_gettext("Sparsity"), min_width=260
        )
        types = [(LazyString(partial(type_name, name)), name) for name in MARKERS]
        quantise = gr.CheckboxGroup(
            types, value=list(default.quantise), label=lazy_gettext("Quantise weights to GGUF type"), min_width=260
        )
    speed = gr.Checkbox(
        default.speed, label=lazy_gettext("Measure speed too (takes longer)"), container=False, elem_id="sweep-speed"
    )
    with gr.Row(equal_height=True, elem_id="sweep-buttons"):
        run = gr.Button(lazy_gettext("Run the sweep"), variant="primary", elem_id="sweep-run", min_width=160, scale=0)
        cancel = gr.Button(lazy_gettext("Cancel"), elem_id="sweep-cancel", min_width=100, scale=0)
        csv = gr.Button(lazy_gettext("Save CSV"), elem_id="sweep-csv", min_width=120, scale=0)
    file = gr.DownloadButton(visible="hidden")
    progress = gr.HTML(elem_id="sweep-progress", apply_default_css=False)
    removed = chart(height=440, elem_id="sweep-chart")
    sizes = chart(height=400, elem_id="sweep-size-chart")
    speed_curves = chart(height=360, elem_id="sweep-speed-chart")
    fold("sweep")
    stored = leaderboard.build()
    return SweepPanel(
        choice={
            "methods": methods,
            "estimators": estimators,
            "sparsities": sparsities,
            "speed": speed,
            "quantise": quantise,
        },
        shown={"progress": progress, "removed": removed, "size": sizes, "speed": speed_curves},
        run=run,
        cancel=cancel,
        csv=csv,
        file=file,
        leaderboard=stored,
    )


def preview(
    session: Session,
    request: Request,
    methods: list[str],
    estimators: list[str],
    sparsities: list[float],
    speed: bool,
    quantise: list[str],
) -> dict[str, str]:
    """The measured points of this sweep, and the estimated time for the rest."""
    choice = SweepChoice(methods, estimators, sparsities, speed, quantise)
    try:
        return _shown(
            measure.cached_view(session, request, choice), measure.estimated_seconds(session, request, choice)
        )
    except ValueError as problem:  # not calibrated yet, or an empty choice
        note = f'<p class="isx-quiet">{escape(translate(error_text(problem)))}</p>'
        return dict.fromkeys(("removed", "size", "speed"), "") | {"progress": note}


def show_pinned(session: Session, request: Request, layer: int, client: str) -> dict[str, str]:
    """The sweep point of the pinned setting, if it is measured; a setting with manual ratios has none."""
    choice = SweepChoice(("intraslice",), (request.slicing.estimator,), (request.settings.sparsity,), speed=True)
    try:
        view = measure.cached_view(session, request, choice)
    except ValueError:  # not calibrated yet
        return {}
    return {} if request.slicing.locked or not view.points else _shown(view)


def sweep(
    session: Session,
    request: Request,
    methods: list[str],
    estimators: list[str],
    sparsities: list[float],
    speed: bool,
    quantise: list[str],
    client: str,
) -> Iterator[dict[str, Any]]:
    """Measure perplexity, and optionally speed, of every method x estimator x sparsity (per cent).

    `quantise` has the GGUF types to round the weights to, or "none". Measured points are read from disk, so a stopped
    sweep continues where it was. Yields two status lines (HTML) and three charts (JSON).
    """
    view: SweepView | None = None
    choice = SweepChoice(methods, estimators, sparsities, speed, quantise)
    work = partial(measure.run_sweep, session=session, request=request, choice=choice)
    for event in session.jobs.run(client, "sweep", work, Urgency.BACKGROUND, partial(session.ready, request)):
        if isinstance(event, Status):
            line = formatting.status(event)
            progress = line if event.kind != "ready" or view is None else _done(view)
            yield {"status": status_line(event), "progress": progress}
        else:
            view = event
            yield {name: chart for name, chart in _shown(view).items() if name != "progress"}


def save(
    session: Session,
    downloads: Downloads,
    request: Request,
    methods: list[str],
    estimators: list[str],
    sparsities: list[float],
    speed: bool,
    quantise: list[str],
) -> str:
    """The measured points of a sweep, as a CSV file."""
    choice = SweepChoice(methods, estimators, sparsities, speed, quantise)
    return str(downloads.put("sweep.csv", lambda path: measure.write_csv(session, request, choice, path)))


def pick(event: gr.EventData) -> dict[str, Any]:
    """The setting of the point that was clicked, for the controls."""
    percent, *estimator = event.pick.split()
    picked = {"sparsity": float(percent), "locked": "", "refresh": str(time.time())}
    return picked | ({"estimator": estimator[0]} if estimator else {})


def connect(panel: SweepPanel, context: Context) -> None:
    """Attach the tab's handlers. Called inside the `gr.Blocks()` that holds the panel."""
    session, call, settings = context.session, context.call, context.controls.settings
    changed = [component.change for component in panel.choice.values()]
    signals = (context.refresh, context.prepared, context.opened["sweep"])
    options = context.controls.commits("sparsity", "estimator", "locked")  # those that all points of a sweep share
    events = [*changed, *options, *(signal.change for signal in signals)]
    on_latest(events, **call(preview, session, outputs=panel.shown, tab="sweep", **panel.choice))
    context.subscribed.append(LiveOutput("sweep", partial_handler(show_pinned, session), panel.shown))
    outputs = {"status": context.status, **panel.shown}
    run = call(sweep, session, outputs=outputs, queue=HEAVY, api_name="sweep", **panel.choice)
    panel.run.click(**run).then(**tell(context.pinned_measured))
    panel.cancel.click(**call(stop, session, ["sweep"]))
    file = {"file": panel.file}
    csv = call(save, session, context.downloads, outputs=file, api_name="sweep_csv", **panel.choice)
    panel.csv.click(**csv).success(**in_browser(SAVE, panel.file))
    picked = {name: settings[name] for name in ("sparsity", "estimator", "locked")} | {"refresh": context.refresh}
    charts = [chart for name, chart in panel.shown.items() if name != "progress"]
    every([chart.select for chart in charts], **call(pick, outputs=picked))
    if panel.leaderboard is not None:
        leaderboard.connect(panel.leaderboard, context)


def _shown(view: SweepView, seconds: float = 0.0) -> dict[str, str]:
    missing = view.total - len(view.points)
    progress = gettext("All {total} points are measured.", total=view.total)
    if missing:
        progress = gettext(
            "{missing} of {total} points are not measured yet: about {time} on this machine.",
            missing=missing,
            total=view.total,
            time=formatting.seconds(seconds),
        )
    charts = {name: chart.to_json() if chart else "" for name, chart in measured_charts(view)._asdict().items()}
    return {"progress": f'<p class="isx-quiet">{progress}</p>', **charts}


def _done(view: SweepView) -> str:
    if len(view.points) == view.total:
        return _shown(view)["progress"]
    done = len(view.points)
    stopped = gettext(
        "Cancelled after {done} of {total} points. Press “Run the sweep” to continue from there.",
        done=done,
        total=view.total,
    )
    return f'<p class="isx-quiet">{stopped}</p>'


def _lead() -> str:
    lead = gettext(
        "Slice the model many times and compare how perplexity rises with sparsity for each method. Bias, cap, "
        "shapes, order and recovery are those of the controls; manual ratios are ignored."
    )
    return f'<p class="isx-lead">{lead}</p>'


def _estimators(methods: list[str]) -> str:
    names = gettext(" and ").join(METHODS[method] for method in methods)
    return gettext("Ratio estimators ({methods})", methods=names)
