"""The sparsity slider: what the page shows while it moves, and what is measured when it is let go."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import partial
from typing import Any, NamedTuple

import gradio as gr

from components.i18n.language import gettext, lazy_gettext
from components.jobs.status import Status
from components.jobs.turns import Urgency
from components.state.request import Request
from components.state.session import Session
from components.state.views import Beside, PlanView
from components.ui import formatting
from components.ui.handlers import LiveOutput, at_opening, unchanged
from components.ui.pinned.differences import name_of


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


class Compared(NamedTuple):
    """What changes when the perplexity of the pinned setting is known."""

    readout: Any
    headline: Any


def preview(
    session: Session,
    always: Sequence[LiveOutput],
    request: Request,
    layer: int,
    pinned: Request | None,
    client: str,
) -> tuple[Any, ...]:
    """Ratios, importances and sizes for a setting, from the calibration that is at hand; answers in milliseconds.

    Returns the two charts (JSON), the readout, the first line, asked/removed and the perplexity block (HTML), and
    the bias that the importances found. Readout and first line give the differences to the pinned setting, if any.
    """
    session.jobs.look(client, request=request)
    shown = [value for live_output in always for value in live_output.show(request, layer, client)]
    return *shown, *texts_of(session, request, pinned)


def move(
    session: Session,
    always: Sequence[LiveOutput],
    when_open: Sequence[LiveOutput],
    request: Request,
    layer: int,
    opened: str,
    pinned: Request | None,
    client: str,
) -> tuple[Any, ...]:
    """`preview` and what the open tab shows in one answer: a request for each would be slower than a drag."""
    shown = preview(session, always, request, layer, pinned, client)
    session.prefetch(request, client)
    for live_output in when_open:
        seen = live_output.tab == opened
        shown += live_output.show(request, layer, client) if seen else (gr.skip(),) * len(live_output.outputs)
    return shown


def texts_of(session: Session, request: Request, pinned: Request | None = None) -> Moved:
    """The texts of a setting, and the bias that its importances found."""
    try:
        plan = session.plan(request)
    except ValueError as error:  # this model cannot be sliced so
        return refused(error)
    bias = gr.skip() if plan is None or request.slicing.bias is not None else round(plan.bias, 2)
    return Moved(*_texts(session, request, plan, pinned), bias)


def refused(error: ValueError) -> Moved:
    """The first line says what is wrong with the controls; everything else stays as it is."""
    return unchanged(Moved)._replace(headline=formatting.problem(error))


def refuse_move(always: Sequence[LiveOutput], when_open: Sequence[LiveOutput], error: ValueError) -> tuple[Any, ...]:
    """`refused` as an answer of `move`, or of `preview` with none `while_open`."""
    before, after = ([gr.skip() for one in live_outputs for _ in one.outputs] for live_outputs in (always, when_open))
    return *before, *refused(error), *after


def opening(session: Session, request: Request) -> Moved:
    """What the page opens with, before any visitor is there; empty where nothing is known."""
    return at_opening(lambda: texts_of(session, request))


def measure(session: Session, request: Request, layer: int, pinned: Request | None, client: str) -> Iterator[Measured]:
    """Slice and take the perplexity; yields status, readout, first line, asked/removed, perplexity (HTML).

    In one shot and without recovery this follows every release of the slider; else only a button starts it, and it goes
    on when the slider moves: the words are then those of the new setting, and only the status is told.
    """
    shown = None
    for event in session.measure(request, client):
        answer = unchanged(Measured)._replace(status=formatting.status(event))
        perplexities = session.perplexities(request)
        is_seen = not session.jobs.looks_elsewhere(client, request=request)
        if is_seen and (perplexities != shown or event.kind == "ready"):
            texts = _texts(session, request, session.plan(request), pinned, gettext("… (being measured)"))
            answer = answer._replace(**texts._asdict())
        yield answer
        shown = perplexities


def on_release(
    session: Session, request: Request, layer: int, pinned: Request | None, client: str
) -> Iterator[Measured]:
    """`measure`, unless that takes so long that only a button may start it."""
    yield unchanged(Measured)  # gradio empties the outputs of a generator that yields nothing
    if request.is_live:
        yield from measure(session, request, layer, pinned, client)


def measure_pinned(session: Session, request: Request, pinned: Request | None, client: str) -> Iterator[Any]:
    """Take the perplexity of the pinned setting where it is not known, such as of one that came with a link.

    Yields the status (HTML). `compare_pinned` says the result, since the slider may have moved meanwhile.
    """
    yield gr.skip()  # gradio empties the outputs of a generator that yields nothing
    if pinned is None or not session.is_calibrated(request) or session.perplexities(pinned).sliced is not None:
        return
    if pinned.is_live or session.is_sliced(pinned):  # what takes long is only sliced on request
        work = partial(session.measure_perplexities, request=pinned)
        for event in session.jobs.run(client, "pinned", work, urgency=Urgency.BACKGROUND):
            yield formatting.status(event)


def compare_pinned(session: Session, request: Request, pinned: Request | None) -> Compared:
    """Readout and first line, with the differences to the pinned setting where its perplexity is known."""
    if pinned is None or session.perplexities(pinned).sliced is None:
        return unchanged(Compared)
    texts = _texts(session, request, session.plan(request), pinned)
    return Compared(texts.readout, texts.headline)


def stop(session: Session, client: str) -> str:
    """Stop this page's running job: a slice, a measurement or an answer. Returns the status line (HTML)."""
    session.jobs.halt(client)
    return formatting.status(Status(lazy_gettext("Stopped."), "ready"))


def _texts(session: Session, request: Request, plan: PlanView | None, pinned: Request | None, hint: str = "") -> Texts:
    measured, beside = session.perplexities(request), _beside(session, request, pinned)
    if plan is not None and plan.provisional and measured.sliced_reading is None:
        hint = gettext("follows in a moment") if measured.protocol else gettext("follows when the model is loaded")
    elif not hint:
        hint = _how_to_measure(request)
    return Texts(
        readout=formatting.readout(plan, measured, beside),
        headline=formatting.headline(plan, measured, hint, beside),
        removed=formatting.removed(plan),
        perplexity=formatting.protocol(measured),
    )


def _how_to_measure(request: Request) -> str:
    """What has to be done for the perplexity to be measured."""
    if request.is_live:
        return gettext("… when you release the slider")
    one_shot = request.slicing.order == "one-shot"
    return gettext('… press "Slice and train"') if one_shot else gettext('… press "Slice as in the paper"')


def _beside(session: Session, request: Request, pinned: Request | None) -> Beside | None:
    """The pinned setting, where anything is known of it that could be set beside the current one."""
    if pinned is None:
        return None
    try:
        plan = session.plan(pinned)
    except ValueError:  # it was within reach of another calibration
        return None
    return Beside(name_of(pinned.settings, request.settings), plan, session.perplexities(pinned)) if plan else None
