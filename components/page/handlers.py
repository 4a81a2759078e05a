"""What happens on the page's frame beside the slider: a model is chosen and prepared, a tab opened, the page closed."""

from __future__ import annotations

from collections.abc import Iterator

import gradio as gr

from components.session.session import Session
from components.session.settings import Settings
from components.ui import formatting
from components.ui.handlers import visitor_of


def memory(session: Session, model: str) -> str:
    """What the model will need, before it is loaded (HTML)."""
    try:
        return f'<p class="isx-quiet">{formatting.escape(session.memory(model))}</p>'
    except ValueError as problem:
        return formatting.problem(problem)


def prepare(session: Session, settings: Settings, request: gr.Request) -> Iterator[str]:
    """Load the model and calibrate it (or find both in the cache); yields the status line (HTML)."""
    for event in session.prepare(settings, visitor_of(request)):
        yield formatting.status(event)


def fit_layers(session: Session, settings: Settings) -> dict:
    """Let the layer slider end at the model's last layer."""
    plan = session.plan(settings)
    return gr.update(maximum=len(plan.layers) - 1) if plan else gr.skip()


def open_tab(session: Session, tab: str, request: gr.Request) -> str:
    """Note that `tab` comes into view; what only another one shows stops."""
    session.jobs.switch_tab(visitor_of(request), tab)
    return tab


def leave(session: Session, request: gr.Request) -> None:
    """Stop all work for a page that was closed."""
    session.leave(visitor_of(request))
