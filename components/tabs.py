"""The tabs, in their order: a new one is a folder of its own and a line in `TABS`."""

from __future__ import annotations

from collections.abc import Mapping
from types import ModuleType
from typing import Any

import gradio as gr

from components.activations import panel as activations
from components.compare import panel as compare
from components.export import panel as export
from components.frame.context import Context
from components.i18n.language import lazy_gettext
from components.ratios import panel as ratios
from components.spectra import panel as spectra
from components.state.request import Request
from components.state.session import Session
from components.sweep import panel as sweep
from components.ui.handlers import LiveOutput

# By id: label, and the module whose `build(session, first)` makes the tab and whose `connect(panel, context)` wires it.
TABS: dict[str, tuple[str, ModuleType]] = {
    "ratios": (lazy_gettext("Ratios"), ratios),
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
    """Every tab's panel by its id, with what is known of `first`. Called inside `gr.Tabs()`."""
    panels = {}
    for tab, (label, module) in TABS.items():
        with gr.Tab(label, id=tab):
            panels[tab] = module.build(session, first)
    return panels


def always(panels: Mapping[str, Any]) -> list[LiveOutput]:
    """What moves while the slider is dragged, whatever tab is in view."""
    return [panels["ratios"].live_output]


def when_open(panels: Mapping[str, Any]) -> list[LiveOutput]:
    """What else moves with the slider, in its own tab. Each output costs every move some 2 ms: the rest waits."""
    return [panels["spectra"].live_output]


def connect(panels: Mapping[str, Any], context: Context) -> None:
    """Attach what belongs to one tab alone. Called inside the `gr.Blocks()` that holds them."""
    for tab, (_, module) in TABS.items():
        module.connect(panels[tab], context)
