"""The tabs, in order. A new tab is a package and an entry in `TABS`."""

from collections.abc import Callable, Mapping
from typing import Any

import gradio as gr

from .activations import panel as activations
from .compare import panel as compare
from .estimator import panel as estimator
from .export import panel as export
from .frame.context import Context
from .i18n.language import lazy_gettext
from .ratios import panel as ratios
from .spectra import panel as spectra
from .state.request import Request
from .state.session import Session
from .sweep import panel as sweep

# By id: the label, what makes the panel inside its tab from the session and the first request, and what connects it.
TABS: dict[str, tuple[str, Callable[[Session, Request], Any], Callable[[Any, Context], None]]] = {
    "ratios": (lazy_gettext("Ratios"), ratios.RatiosPanel, ratios.connect),
    "estimator": (lazy_gettext("Estimator"), estimator.EstimatorPanel, estimator.connect),
    "spectra": (lazy_gettext("Spectra"), spectra.SpectraPanel, spectra.connect),
    "activations": (lazy_gettext("Activations"), activations.ActivationsPanel, activations.connect),
    "compare": (lazy_gettext("Compare"), compare.ComparePanel, compare.connect),
    "sweep": (lazy_gettext("Sweep"), sweep.SweepPanel, sweep.connect),
    "export": (lazy_gettext("Export"), export.ExportPanel, export.connect),
}


def labels() -> dict[str, str]:
    """The tabs' labels by their ids."""
    return {tab: label for tab, (label, *_) in TABS.items()}


def build(session: Session, first: Request) -> dict[str, Any]:
    """The tabs' panels by id, showing the request `first`. Called inside `gr.Tabs()`."""
    panels = {}
    for tab, (label, build_panel, _) in TABS.items():
        with gr.Tab(label, id=tab):
            panels[tab] = build_panel(session, first)
    return panels


def connect(panels: Mapping[str, Any], context: Context) -> None:
    """Connect each tab's own events. Called inside the page's `gr.Blocks()`."""
    for tab, (*_, connect_panel) in TABS.items():
        connect_panel(panels[tab], context)
