"""The tabs, in order. A new tab is a package and an entry in `TABS`."""

from __future__ import annotations

from collections.abc import Mapping
from types import ModuleType
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
from .ui.handlers import LiveOutput

# By id: the label, and a module with `build(session, first)`, which returns the panel, and `connect(panel, context)`.
TABS: dict[str, tuple[str, ModuleType]] = {
    "ratios": (lazy_gettext("Ratios"), ratios),
    "estimator": (lazy_gettext("Estimator"), estimator),
    "spectra": (lazy_gettext("Spectra"), spectra),
    "activations": (lazy_gettext("Activations"), activations),
    "compare": (lazy_gettext("Compare"), compare),
    "sweep": (lazy_gettext("Sweep"), sweep),
    "export": (lazy_gettext("Export"), export),
}


def labels() -> dict[str, str]:
    """The tabs' labels by their ids."""
    return {tab: label for tab, (label, _) in TABS.items()}


def build(session: Session, first: Request) -> dict[str, Any]:
    """The tabs' panels by id, showing the request `first`. Called inside `gr.Tabs()`."""
    panels = {}
    for tab, (label, module) in TABS.items():
        with gr.Tab(label, id=tab):
            panels[tab] = module.build(session, first)
    return panels


def always(panels: Mapping[str, Any]) -> list[LiveOutput]:
    """Outputs that are updated while the slider is dragged, whichever tab is active."""
    return [panels["ratios"].live_output]


def when_open(panels: Mapping[str, Any]) -> list[LiveOutput]:
    """Outputs that are updated while the slider is dragged, if their tab is active.

    All others are updated on release, since each output adds about 2 ms to every move.
    """
    return [panels["ratios"].anatomy, panels["spectra"].live_output]


def connect(panels: Mapping[str, Any], context: Context) -> None:
    """Connect each tab's own events. Called inside the page's `gr.Blocks()`."""
    for tab, (_, module) in TABS.items():
        module.connect(panels[tab], context)
