"""The sparsity slider: what the page shows while it moves, and what is measured when it is let go."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import gradio as gr

from components.session.session import Session
from components.session.settings import Settings, Status
from components.session.views import Perplexities, PlanView
from components.ui import formatting
from components.ui.handlers import Follower, at_opening, skipped, visitor_of


class Texts(NamedTuple):
    """The words that follow the slider, whatever tab is in view."""

    readout: Any
    headline: Any
    removed: Any
    perplexity: Any


class Moved(NamedTuple):
    """What each move changes beside the tabs."""

    readout: Any
    headline: Any
    removed: Any
    perplexity: Any
    bias_found: Any


class Measured(NamedTuple):
    """What a measurement changes."""

    status: Any
    readout: Any
    headline: Any
    removed: Any
    perplexity: Any


def preview(session: Session, always: Sequence[Follower], settings: Settings, layer: int, request: gr.Request) -> tuple:
    """Ratios, importances and sizes for a setting, from the calibration that is at hand; answers in milliseconds.

    Returns the two charts (JSON), the readout, the first line, asked/removed and the perplexity block (HTML), and
    the bias that the importances found.
    """
    session.jobs.look(visitor_of(request), settings=settings)
    shown = [value for follower in always for value in follower.show(settings, layer, request)]
    return *shown, *texts_of(session, settings)


def move(
    session: Session,
    always: Sequence[Follower],
    while_open: Sequence[Follower],
    settings: Settings,
    layer: int,
    opened: str,
    request: gr.Request,
) -> tuple:
    """`preview` and what the open tab shows in one answer: a request for each would be slower than a drag."""
    shown = preview(session, always, settings, layer, request)
    for follower in while_open:
        seen = follower.tab == opened
        shown += follower.show(settings, layer, request) if seen else (gr.skip(),) * len(follower.outputs)
    return shown


def texts_of(session: Session, settings: Settings) -> Moved:
    """The texts of a setting, and the bias that its importances found."""
    try:
        plan = session.plan(settings)
    except ValueError as problem:
        return skipped(Moved)._replace(headline=formatting.problem(problem))
    found = plan is not None and settings.bias is None
    bias = round(plan.bias, 2) if found else gr.skip()
    return Moved(*_texts(settings, plan, session.perplexities(settings)), bias)


def opening(session: Session, settings: Settings) -> Moved:
    """What the page opens with, before any visitor is there; empty where nothing is known."""
    return at_opening(texts_of(session, settings))


def measure(session: Session, settings: Settings, layer: int, request: gr.Request) -> Iterator[Measured]:
    """Slice and take the perplexity; yields status, readout, first line, asked/removed, perplexity (HTML).

    With order "one-shot" this follows every release of the slider; with "sequential" only the button starts it.
    """
    shown = None
    for event in session.measure(settings, visitor_of(request)):
        answer = skipped(Measured)._replace(status=formatting.status(event))
        perplexities = session.perplexities(settings)
        if perplexities != shown or event.kind == "ready":
            texts = _texts(settings, session.plan(settings), perplexities, "… (being measured)")
            answer = answer._replace(**texts._asdict())
        yield answer
        shown = perplexities


def let_go(session: Session, settings: Settings, layer: int, request: gr.Request) -> Iterator[Measured]:
    """`measure`, unless the order is sequential, which only its button may start."""
    yield skipped(Measured)  # gradio empties the outputs of a generator that yields nothing
    if settings.order == "one-shot":
        yield from measure(session, settings, layer, request)


def stop(session: Session, request: gr.Request) -> str:
    """Stop this page's running job: a slice, a measurement or an answer. Returns the status line (HTML)."""
    session.jobs.halt(visitor_of(request))
    return formatting.status(Status("Stopped.", "ready"))


def _texts(settings: Settings, plan: PlanView | None, measured: Perplexities, hint: str = "") -> Texts:
    if plan is not None and plan.provisional and measured.sliced_reading is None:
        hint = "follows in a moment" if measured.protocol else "follows when the model is loaded"
    elif not hint:
        hint = "… when you let go" if settings.order == "one-shot" else '… press "Slice as in the paper"'
    return Texts(
        readout=formatting.readout(plan, measured),
        headline=formatting.headline(plan, measured, hint),
        removed=formatting.removed(plan),
        perplexity=formatting.protocol(settings, measured),
    )
