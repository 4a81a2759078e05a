"""The Sweep tab: perplexity of many models against parameters removed, size on disk, and measured speed."""

import time
from functools import partial
from html import escape
from typing import Any

import gradio as gr

from ..frame.context import HEAVY, Context, every, in_browser, tell
from ..frame.handlers import stop
from ..gradio_compat.browser.on_latest import on_latest
from ..gradio_compat.signatures import partial_handler
from ..i18n.language import LazyString, gettext, lazy_gettext, percentage, translate
from ..jobs.job import Urgency
from ..jobs.status import Status
from ..limits import error_text
from ..state import choices
from ..state.request import Request
from ..state.session import Session
from ..ui import formatting
from ..ui.chart_bridge import chart
from ..ui.downloads import SAVE, Downloads
from ..ui.explainers import fold, note, paragraph
from ..ui.handlers import LiveOutput, Updates, status_line
from ..ui.labels import ESTIMATORS, METHODS
from . import measure, tried
from .charts import MARKERS, measured_charts, type_name
from .leaderboard import panel as leaderboard
from .views import SweepChoice, SweepView

LEAD = lazy_gettext(
    "Slice the model many times and compare how perplexity rises with sparsity for each method. Bias, cap, shapes, "
    "order and recovery are those of the controls; manual ratios are ignored."
)
SPARSITIES = (5, 10, 15, 20, 25, 30, 35, 40, 50, 60)


class SweepPanel:
    """The tab's components, created inside a `gr.Tab`: `choice` as `SweepChoice`, `charts` as `measured_charts`."""

    def __init__(self, session: Session, first: Request) -> None:
        default = SweepChoice()
        note(LEAD, "isx-lead")
        group = partial(gr.CheckboxGroup, min_width=260)
        sparsities = [(LazyString(partial(percentage, percent)), percent) for percent in SPARSITIES]
        types = [(LazyString(partial(type_name, name)), name) for name in MARKERS]
        with gr.Row(elem_id="sweep-choice"):
            controls: dict[str, Any] = {
                "methods": group(METHODS.options(), value=default.methods, label=lazy_gettext("Methods")),
                "estimators": group(ESTIMATORS.options(), value=default.estimators, label=LazyString(_estimators)),
                "sparsities": group(sparsities, value=default.sparsities, label=lazy_gettext("Sparsity")),
                "quantise": group(types, value=default.quantise, label=lazy_gettext("Quantise weights to GGUF type")),
            }
        label = lazy_gettext("Measure speed too (takes longer)")
        controls["speed"] = gr.Checkbox(default.speed, label=label, container=False, elem_id="sweep-speed")
        self.choice = {name: controls[name] for name in SweepChoice._fields}
        with gr.Row(equal_height=True, elem_id="sweep-buttons"):
            label, button = lazy_gettext("Run the sweep"), partial(gr.Button, scale=0)
            self.run = button(label, variant="primary", elem_id="sweep-run", min_width=160)
            self.cancel = button(lazy_gettext("Cancel"), elem_id="sweep-cancel", min_width=100)
            self.csv = button(lazy_gettext("Save CSV"), elem_id="sweep-csv", min_width=120)
        self.file = gr.DownloadButton(visible="hidden")
        self.progress = gr.HTML(elem_id="sweep-progress", apply_default_css=False)
        self.charts = {
            "removed": chart(height=440, elem_id="sweep-chart"),
            "size": chart(height=400, elem_id="sweep-size-chart"),
            "speed": chart(height=360, elem_id="sweep-speed-chart"),
        }
        fold("sweep")
        self.tried = tried.build()
        self.leaderboard = leaderboard.build()


def connect(panel: SweepPanel, context: Context) -> None:
    """Attach the tab's handlers. Called inside the `gr.Blocks()` that holds the panel."""
    session, call, settings = context.session, context.call, context.controls.settings
    choice = panel.choice
    outputs = {"progress": panel.progress, **panel.charts}
    signals = (*choice.values(), context.refresh, context.prepared, context.opened["sweep"])
    shared = context.controls.commits("sparsity", "estimator", "locked")  # options of all points of a sweep
    previews = call(preview, session, outputs=outputs, tab="sweep", **choice)
    on_latest([*shared, *(signal.change for signal in signals)], **previews)
    context.subscribed.append(LiveOutput("sweep", partial_handler(show_pinned, session), panel.charts))
    runs = call(sweep, session, outputs={"status": context.status, **outputs}, queue=HEAVY, api_name="sweep", **choice)
    panel.run.click(**runs).then(**tell(context.pinned_measured))
    panel.cancel.click(**call(stop, session, ["sweep"]))
    file = {"file": panel.file}
    saves = call(save, session, context.downloads, outputs=file, queue=HEAVY, api_name="sweep_csv", **choice)
    panel.csv.click(**saves).success(**in_browser(SAVE, panel.file))
    picked = {name: settings[name] for name in tried.FIELDS} | {"refresh": context.refresh}
    every([points.select for points in (*panel.charts.values(), panel.tried)], **call(pick, outputs=picked))
    if panel.leaderboard:
        leaderboard.connect(context, **panel.leaderboard)


def preview(session: Session, request: Request, choice: SweepChoice, client: str) -> dict[str, Any]:
    """The measured points of this sweep, and the estimated time for the rest."""
    session.jobs.set_view(client, sweep=_settings(request, choice))
    try:
        view = measure.cached_view(session, request, choice)
        seconds = measure.estimated_seconds(session, request, choice)
    except ValueError as problem:  # not calibrated yet, or an empty choice
        return {"progress": paragraph(escape(translate(error_text(problem)))), "removed": "", "size": "", "speed": ""}
    return {"progress": paragraph(_missing(view, seconds)), **_drawn(view)}


def show_pinned(session: Session, request: Request, layer: int, client: str) -> dict[str, str]:
    """The sweep point of the pinned setting, if it is measured; a setting with manual ratios has none."""
    choice = SweepChoice(["intraslice"], [request.slicing.estimator], [request.settings.sparsity], speed=True)
    try:
        view = measure.cached_view(session, request, choice)
    except ValueError:  # not calibrated yet
        return {}
    return {} if request.slicing.locked or not view.points else _drawn(view)


def sweep(session: Session, request: Request, choice: SweepChoice, client: str) -> Updates:
    """Measure perplexity, and optionally speed, of every method x estimator x sparsity (per cent).

    `quantise` has the GGUF types to round the weights to, or "none". Measured points are read from disk. Yields two
    status lines (HTML) and three charts (JSON); the first alone while the client views another sweep.
    """
    view, settings = None, _settings(request, choice)
    session.jobs.set_view(client, sweep=settings)
    work = partial(measure.run_sweep, session=session, request=request, choice=choice)
    for event in session.jobs.run(client, "sweep", work, Urgency.BACKGROUND, partial(session.ready, request)):
        is_shown = session.jobs.view_of(client, "sweep", settings) == settings
        if isinstance(event, Status):
            progress = _end(view) if event.kind == "ready" and view is not None else formatting.status(event)
            yield {"status": status_line(event)} | ({"progress": progress} if is_shown else {})
        else:
            view = event
            yield _drawn(view) if is_shown else {}


def save(session: Session, downloads: Downloads, request: Request, choice: SweepChoice) -> str:
    """The measured points of a sweep, as a CSV file."""
    return str(downloads.put("sweep.csv", partial(measure.write_csv, session, request, choice)))


def pick(event: gr.EventData) -> dict[str, Any]:
    """The setting of the point, or of a measured setting, that was clicked, for the controls."""
    if "=" in event.pick:
        return tried.values_of(event.pick)
    percent, *estimator = event.pick.split()
    picked = {"sparsity": float(percent), "locked": "", "refresh": str(time.time())}
    return picked | ({"estimator": estimator[0]} if estimator else {})


def _settings(request: Request, choice: SweepChoice) -> tuple[object, ...]:
    """What a sweep is of, without what its points have of their own."""
    return request.with_settings(sparsity=0, estimator="pca", locked=""), choice


def _drawn(view: SweepView) -> dict[str, str]:
    return {name: points.to_json() if points else "" for name, points in measured_charts(view).items()}


def _missing(view: SweepView, seconds: float) -> str:
    missing = view.total - len(view.points)
    if not missing:
        return gettext("All {total} points are measured.", total=view.total)
    return gettext(
        "{missing} of {total} points are not measured yet: about {time} on this machine.",
        missing=missing,
        total=view.total,
        time=formatting.seconds(seconds),
    )


def _end(view: SweepView) -> str:
    """What a sweep that has ended has measured (HTML)."""
    done = len(view.points)
    stopped = gettext(
        "Cancelled after {done} of {total} points. Press “Run the sweep” to continue from there.",
        done=done,
        total=view.total,
    )
    return paragraph(_missing(view, 0.0) if done == view.total else stopped)


def _estimators() -> str:
    with_estimator = [METHODS[name] for name, method in choices.METHODS.items() if method.uses_estimator]
    return gettext("Ratio estimators ({methods})", methods=gettext(" and ").join(with_estimator))
