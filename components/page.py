"""IntraSlice Explorer: the page. `python app.py` opens it; a Hugging Face Space runs this same file."""

from __future__ import annotations

import os

from components.server import shutdown

os.environ.setdefault("GRADIO_ANALYTICS_ENABLED", "False")
os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
# Threads that wait for each other should sleep: a slider's own must not compete with those that only spin.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
if __name__ == "__main__":
    shutdown.on_signal()  # maybe while this is imported

import gradio as gr

from components import api, tabs
from components.frame import controls, events, link, pinning, slider, theme
from components.gradio_compat.connection import connection_check
from components.jobs import limits
from components.server.app import App
from components.state import choices
from components.state.request import default_precision, parse
from components.state.session import Session
from components.state.settings import Settings
from components.ui import explainers, formatting
from intraslice.core.cache import bound_cache


def build_app(session: Session) -> App:
    """The whole page over one session. `launch(**launch_options())` it."""
    first = parse(Settings(dtype=default_precision()))
    session.jobs.connection = connection_check
    opening = slider.opening(session, first)
    with App(session.jobs.scheduler, title="IntraSlice Explorer", analytics_enabled=False, fill_width=True) as page:
        sidebar = gr.Sidebar(width=340, elem_id="controls")
        explainers.header()
        headline = gr.HTML(opening.headline, elem_id="headline", apply_default_css=False)
        status = gr.HTML(formatting.starting(), elem_id="status", apply_default_css=False)
        toolbar = pinning.build()
        with gr.Row(elem_id="slider-bar"):
            sparsity = controls.sparsity_slider(first.settings.sparsity)
            removed = gr.HTML(opening.removed, elem_id="removed", apply_default_css=False)
        with sidebar:
            side = controls.build(session, first.settings, sparsity, opening)
        with gr.Tabs(elem_id="tabs") as row:
            panels = tabs.build(session, first)
        explainers.glossary()
        frame = events.Frame(
            controls=side,
            tabs=row,
            tab=gr.Textbox(link.FIRST_TAB, visible=False),
            status=status,
            headline=headline,
            removed=removed,
            prompt=panels["compare"].prompt,
            perplexity=panels["compare"].perplexity,
            panels=panels,
        )
        context = events.connect(page, session, frame, tabs.always(panels), tabs.when_open(panels))
        tabs.connect(panels, context)
        pinning.connect(toolbar, context, frame)
        api.build(session)
    return page


def launch_options() -> dict[str, object]:
    """Keyword arguments for `launch()`."""
    return theme.launch_options(tabs.labels())


def main() -> None:
    """Open the page on this machine; gradio's own environment variables choose address and port."""
    choices.offer_own_estimators()
    bound_cache(limits.CACHE_BYTES.value)
    build_app(Session()).queue(default_concurrency_limit=8).serve(**launch_options())


if __name__ == "__main__":
    main()
