"""IntraSlice Explorer: the page. `python app.py` opens it; a Hugging Face Space runs this same file."""

from __future__ import annotations

import os

os.environ.setdefault("GRADIO_ANALYTICS_ENABLED", "False")
os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")

import gradio as gr

from components import (
    activations_panel,
    compare_panel,
    controls_panel,
    export_panel,
    look,
    overrides_panel,
    ratios_panel,
    spectra_panel,
    sweep_panel,
    teaching,
    verdict_panel,
    wording,
)
from components.handlers import Handlers
from components.session import Session
from components.views import Settings, Status
from components.wiring import connect


def build_app(session: Session) -> gr.Blocks:
    """The whole page over one session. `launch(**look.launch_options())` it."""
    handlers, first = Handlers(session), Settings()
    # What is known before anything is loaded stands in the page as it opens.
    ratios_json, importances_json, readout_html, headline_html, removed_html, _ = handlers.opening(first)
    with gr.Blocks(title="IntraSlice Explorer", analytics_enabled=False, fill_width=True) as page:
        sidebar = gr.Sidebar(width=340, elem_id="controls")
        teaching.header()
        headline = gr.HTML(headline_html, elem_id="headline", apply_default_css=False)
        status = gr.HTML(wording.status(Status("Starting")), elem_id="status", apply_default_css=False)
        with gr.Row(elem_id="slider-bar"):
            sparsity = controls_panel.sparsity_slider(first.sparsity)
            removed = gr.HTML(removed_html, elem_id="removed", apply_default_css=False)
        with sidebar:
            controls = controls_panel.build(session, first, sparsity, readout_html)
        with gr.Tabs(elem_id="tabs") as tabs:
            with gr.Tab("Ratios", id="ratios"):
                ratios = ratios_panel.build(ratios_json, importances_json)
                with ratios.by_hand:
                    overrides = overrides_panel.build()
                verdict = verdict_panel.build(session, first)
            with gr.Tab("Spectra", id="spectra"):
                spectra = spectra_panel.build(session, first)
            with gr.Tab("Activations", id="activations"):
                activations = activations_panel.build(session, first)
            with gr.Tab("Compare", id="compare"):
                compare = compare_panel.build(session)
            with gr.Tab("Sweep", id="sweep"):
                sweep = sweep_panel.build()
            with gr.Tab("Export", id="export"):
                export = export_panel.build()
        teaching.glossary()
        shared = connect(handlers, controls, ratios, compare, tabs, gr.State("ratios"), status, headline, removed)
        overrides_panel.connect(overrides, shared)
        verdict_panel.connect(verdict, shared)
        compare_panel.connect(compare, shared)
        spectra_panel.connect(spectra, shared)
        activations_panel.connect(activations, shared)
        sweep_panel.connect(sweep, shared)
        export_panel.connect(export, shared, sweep.choice)
    return page


def main() -> None:
    """Open the page on this machine; gradio's own environment variables choose address and port."""
    build_app(Session()).queue(default_concurrency_limit=8).launch(**look.launch_options())


if __name__ == "__main__":
    main()
