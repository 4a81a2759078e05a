"""The tabs, in their order: a new one is a folder of its own and a line in `build` and in `connect`."""

from __future__ import annotations

from typing import NamedTuple

import gradio as gr

from components.activations import panel as activations_panel
from components.compare import panel as compare_panel
from components.export import panel as export_panel
from components.page.context import Context
from components.ratios import panel as ratios_panel
from components.session.session import Session
from components.session.settings import Settings
from components.spectra import panel as spectra_panel
from components.sweep import panel as sweep_panel
from components.ui.handlers import Follower

LABELS = {
    "ratios": "Ratios",
    "spectra": "Spectra",
    "activations": "Activations",
    "compare": "Compare",
    "sweep": "Sweep",
    "export": "Export",
}


class Tabs(NamedTuple):
    """Every tab's parts."""

    ratios: ratios_panel.RatiosPanel
    spectra: spectra_panel.SpectraPanel
    activations: activations_panel.ActivationsPanel
    compare: compare_panel.ComparePanel
    sweep: sweep_panel.SweepPanel
    export: export_panel.ExportPanel


def build(session: Session, first: Settings) -> Tabs:
    """All tabs, with what is known of `first`. Called inside `gr.Tabs()`."""
    panels = {
        "ratios": ratios_panel.build,
        "spectra": spectra_panel.build,
        "activations": activations_panel.build,
        "compare": compare_panel.build,
        "sweep": sweep_panel.build,
        "export": export_panel.build,
    }
    parts = {}
    for tab, label in LABELS.items():
        with gr.Tab(label, id=tab):
            parts[tab] = panels[tab](session, first)
    return Tabs(**parts)


def always(tabs: Tabs, session: Session) -> list[Follower]:
    """What moves while the slider is dragged, whatever tab is in view."""
    return [tabs.ratios.follower(session)]


def in_view(tabs: Tabs) -> list[Follower]:
    """What else moves with the slider, in its own tab. Each output costs every move some 2 ms: the rest waits."""
    return [tabs.spectra.follower]


def connect(tabs: Tabs, context: Context) -> None:
    """Attach what belongs to one tab alone. Called inside the `gr.Blocks()` that holds them."""
    ratios_panel.connect(tabs.ratios, context)
    compare_panel.connect(tabs.compare, context)
    spectra_panel.connect(tabs.spectra, context)
    activations_panel.connect(tabs.activations, context)
    sweep_panel.connect(tabs.sweep, context)
    export_panel.connect(tabs.export, context, tabs.sweep.choice)
