"""The tabs, in their order: what each one holds, and the order in which they wire themselves."""

from __future__ import annotations

from typing import NamedTuple

import gradio as gr

from components.activations import panel as activations_panel
from components.compare import panel as compare_panel
from components.export import panel as export_panel
from components.page.context import Page
from components.ratios import overrides as overrides_panel
from components.ratios import panel as ratios_panel
from components.ratios.estimator_check import panel as verdict_panel
from components.session.session import Session
from components.session.settings import Settings
from components.spectra import panel as spectra_panel
from components.sweep import panel as sweep_panel
from components.ui.handlers import Follower


class Tabs(NamedTuple):
    """Every tab's components."""

    ratios: ratios_panel.RatiosPanel
    overrides: overrides_panel.OverridesPanel
    verdict: verdict_panel.VerdictPanel
    spectra: spectra_panel.SpectraPanel
    activations: activations_panel.ActivationsPanel
    compare: compare_panel.ComparePanel
    sweep: sweep_panel.SweepPanel
    export: export_panel.ExportPanel


def build(session: Session, first: Settings, ratios_json: str, importances_json: str) -> Tabs:
    """All tabs, with the JSON that the first one's charts open with. Called inside `gr.Tabs()`."""
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
    return Tabs(ratios, overrides, verdict, spectra, activations, compare, sweep, export)


def followers(tabs: Tabs) -> list[Follower]:
    """What moves while the slider is dragged. Each output costs every move some 2 ms, so the rest waits for its end."""
    return [Follower("spectra", tabs.spectra.show, tabs.spectra.shown)]


def connect(tabs: Tabs, page: Page) -> None:
    """Attach what belongs to one tab alone. Called inside the `gr.Blocks()` that holds them."""
    overrides_panel.connect(tabs.overrides, page)
    verdict_panel.connect(tabs.verdict, page)
    compare_panel.connect(tabs.compare, page)
    spectra_panel.connect(tabs.spectra, page)
    activations_panel.connect(tabs.activations, page)
    sweep_panel.connect(tabs.sweep, page)
    export_panel.connect(tabs.export, page, tabs.sweep.choice)
