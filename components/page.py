"""The whole page: its frame, its tabs and its API, over one session."""

import logging

import gradio as gr

from . import api, limits, tabs
from .device.routes import routes
from .frame import controls, events, handlers, link, pinning, theme
from .frame.context import Context, signal
from .gradio_compat.callers import current_caller
from .rooms import routes as room_routes
from .rooms.rooms import Rooms
from .rooms.store import rooms_folder
from .server import process, warming
from .server.app import App
from .state import choices
from .state.request import default_precision
from .state.session import Session
from .state.settings import Settings
from .ui import explainers, formatting, screen


def build_app(session: Session) -> App:
    """The whole page for one session, for `launch(**launch_options())`."""
    first = session.opening.with_settings(dtype=default_precision())
    session.jobs.caller = current_caller
    initial = handlers.initial_texts(session, first)
    with App(session.jobs.scheduler, title="IntraSlice Explorer", analytics_enabled=False, fill_width=True) as page:
        sidebar = gr.Sidebar(width=340, elem_id="controls")
        explainers.header()
        notice = gr.HTML(elem_id="notice", apply_default_css=False)
        headline = screen.newest(initial("headline"), "headline")
        status = screen.newest(formatting.starting(), "status")
        toolbar = pinning.Toolbar()
        with gr.Row(elem_id="slider-bar"):
            sparsity = controls.component("sparsity", first.settings)
            removed = screen.newest(initial("removed"), "removed")
        with sidebar:
            # The default of programs is a component's value; `link.restore` sets the estimator of who opens the page.
            sidebar_controls = controls.Controls(session, Settings(dtype=first.settings.dtype), sparsity, initial)
        with gr.Tabs(elem_id="tabs") as tab_row:
            panels = tabs.build(session, first)
        explainers.glossary()
        context = Context(
            session=session,
            controls=sidebar_controls,
            tabs=tab_row,
            tab=gr.Textbox(link.FIRST_TAB, visible=False),
            panels=panels,
            opened={tab: signal() for tab in panels},
            always=[panels["ratios"].live_output],
            # All others are updated on release, since each output adds about 2 ms to every move.
            when_open=[panels["ratios"].anatomy, panels["spectra"].live_output, panels["compare"].facts.live_output],
            status=status,
            notice=notice,
            texts={
                "readout": sidebar_controls.readout,
                "headline": headline,
                "removed": removed,
                "perplexity": panels["compare"].perplexity,
            },
            measure_here=gr.Button("measure", visible="hidden", elem_id="measure-here"),
            prompt=panels["compare"].prompt,
        )
        events.connect(page, context)
        tabs.connect(panels, context)
        pinning.connect(toolbar, context)
        api.build(session, page)
        page.own_routes += [
            *theme.routes(tabs.labels()),
            *routes(panels["compare"].device.files),
            *room_routes.routes(Rooms(rooms_folder())),
        ]
    return page


def launch_options() -> dict[str, object]:
    """Keyword arguments for `launch()`."""
    return theme.launch_options(tabs.labels())


def serve() -> None:
    """Serve the page until the process ends."""
    logging.basicConfig(format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    for package in (__name__.partition(".")[0], "intraslice"):
        logging.getLogger(package).setLevel(logging.INFO)  # each job, and each download
    choices.offer_own_estimators()
    limits.limit_cache()
    session = Session()
    warming.load_weights(session)  # while the page is built
    app = build_app(session)
    for precision in choices.PRECISIONS:
        session.plan(session.opening.with_settings(dtype=precision))  # ranks its units, before the slider moves
    if warming.is_wanted():
        app.warming = warming.Warming(session)
        app.warming.start()
    # Seldom: of sixty calls at once gradio would tell each that waits about each that begins.
    app.queue(default_concurrency_limit=8, status_update_rate=60.0).serve(
        inbrowser=process.has_browser() and not limits.hosted(), **launch_options()
    )
