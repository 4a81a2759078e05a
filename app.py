"""IntraSlice Explorer: the page. `python app.py` opens it; a Hugging Face Space runs this same file."""

from __future__ import annotations

import os
import signal
import sys

os.environ.setdefault("GRADIO_ANALYTICS_ENABLED", "False")
os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")

import gradio as gr

from components import api, tabs
from components.page import controls as controls_panel
from components.page import theme
from components.page.events import connect
from components.page.handlers import Handlers
from components.session.session import Session
from components.session.settings import Settings, Status
from components.ui import explainers, formatting


def build_app(session: Session) -> gr.Blocks:
    """The whole page over one session. `launch(**theme.launch_options())` it."""
    handlers, first = Handlers(session), Settings()
    # What is known before anything is loaded stands in the page as it opens.
    ratios_json, importances_json, readout_html, headline_html, removed_html, _, found_bias = handlers.opening(first)
    with gr.Blocks(title="IntraSlice Explorer", analytics_enabled=False, fill_width=True) as page:
        sidebar = gr.Sidebar(width=340, elem_id="controls")
        explainers.header()
        headline = gr.HTML(headline_html, elem_id="headline", apply_default_css=False)
        status = gr.HTML(formatting.status(Status("Starting")), elem_id="status", apply_default_css=False)
        with gr.Row(elem_id="slider-bar"):
            sparsity = controls_panel.sparsity_slider(first.sparsity)
            removed = gr.HTML(removed_html, elem_id="removed", apply_default_css=False)
        with sidebar:
            controls = controls_panel.build(session, first, sparsity, readout_html, found_bias or 1)
        with gr.Tabs(elem_id="tabs") as shown:
            panels = tabs.build(session, first, ratios_json, importances_json)
        explainers.glossary()
        page_of = (panels.ratios, panels.compare, shown, gr.State("ratios"), status, headline, removed)
        tabs.connect(panels, connect(handlers, controls, *page_of, tabs.followers(panels)))
        api.build(session)
    return page


def main() -> None:
    """Open the page on this machine; gradio's own environment variables choose address and port."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit())  # so that temporary files go when the app is told to end
    build_app(Session()).queue(default_concurrency_limit=8).launch(**theme.launch_options())


if __name__ == "__main__":
    main()
