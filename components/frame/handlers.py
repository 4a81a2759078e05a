"""What happens on the page's frame beside the slider: a model is chosen and prepared, a tab opened, the page closed."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from html import escape
from typing import Any, NamedTuple

import gradio as gr

from components.i18n.language import translate
from components.state.request import Request
from components.state.session import Session
from components.ui import formatting


def memory(session: Session, model: str) -> str:
    """What the model will need, before it is loaded (HTML)."""
    try:
        return f'<p class="isx-quiet">{escape(translate(session.memory(model)))}</p>'
    except (ValueError, OSError) as problem:
        return formatting.problem(problem)


class Prepared(NamedTuple):
    """The status, and another value whenever the calibration has seen enough more for better plans."""

    status: Any
    refresh: Any


def prepare(session: Session, request: Request, client: str) -> Iterator[Prepared]:
    """Load the model and calibrate it (or find both in the cache).

    Yields the status line (HTML), and how many sequences plans come from whenever these have grown.
    """
    seen = session.sequences(request)
    for event in session.prepare(request, client):
        before, seen = seen, session.sequences(request)
        grown = seen != before and not session.is_calibrated(request)  # what follows the end sees to that
        yield Prepared(formatting.status(event), f"{seen} sequences, {time.time():.1f}" if grown else gr.skip())


def fit_layers(session: Session, request: Request) -> dict[str, Any]:
    """Let the layer slider end at the model's last layer."""
    plan = session.plan(request)
    return gr.update(maximum=len(plan.layers) - 1) if plan else gr.skip()


def open_tab(session: Session, tabs: Sequence[str], opened: str, client: str) -> tuple[Any, ...]:
    """Note which of `tabs` comes into view; what only another one shows stops. Another value for that tab's signal."""
    session.jobs.look(client, tab=opened)
    return tuple(f"{time.time()}" if tab == opened else gr.skip() for tab in tabs)


def leave(session: Session, client: str) -> None:
    """Stop all work for a page that was closed."""
    session.jobs.halt(client)
