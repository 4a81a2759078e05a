"""Handlers of the sparsity slider: what the page shows while it moves, and measures when it is released."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from functools import partial
from typing import Any, NamedTuple

import gradio as gr

from ..i18n.language import gettext
from ..jobs.turns import Urgency
from ..state.request import Request
from ..state.session import Session
from ..state.views import PinnedView, PlanView
from ..ui import formatting
from ..ui.handlers import LiveOutput, initial_values, status_line, unchanged
from ..ui.headline import headline, measure_button
from ..ui.pinned.differences import name_of


class Texts(NamedTuple):
    """Texts outside of the tabs that depend on the settings (HTML)."""

    readout: Any
    headline: Any
    removed: Any
    perplexity: Any


class Moved(NamedTuple):
    """What each move of the slider changes outside of the tabs."""

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
    """What changes after the pinned setting's perplexity is measured."""

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
    """Ratios, importances and sizes for a setting, from the calibration so far; answers in milliseconds.

    Returns the two charts (JSON), the readout, the headline, target and actual sparsity and the perplexity (HTML), and
    the bias set by the importances. Readout and headline include the differences from the pinned setting, if any.
    """
    session.jobs.look(client, request=request)
    values = [value for live_output in always for value in live_output.show(request, layer, client)]
    return *values, *texts_of(session, request, pinned)


def move(
    session: Session,
    always: Sequence[LiveOutput],
    when_open: Sequence[LiveOutput],
    request: Request,
    layer: int,
    active_tab: str,
    pinned: Request | None,
    client: str,
) -> tuple[Any, ...]:
    """`preview`, and the active tab's live outputs. One call for both, since two would be too slow while dragging."""
    values = preview(session, always, request, layer, pinned, client)
    session.prefetch(request, client)
    for live_output in when_open:
        is_active = live_output.tab == active_tab
        values += live_output.show(request, layer, client) if is_active else (gr.skip(),) * len(live_output.outputs)
    return values


def texts_of(session: Session, request: Request, pinned: Request | None = None) -> Moved:
    """The texts of a setting, and the bias set by its importances."""
    try:
        plan = session.plan(request)
    except ValueError as error:  # the model does not allow this setting
        return refused(error)
    bias = gr.skip() if plan is None or request.slicing.bias is not None else round(plan.bias, 2)
    return Moved(*_texts(session, request, plan, pinned), bias)


def refused(error: ValueError) -> Moved:
    """An answer with the error as the headline; everything else is unchanged."""
    return unchanged(Moved)._replace(headline=formatting.problem(error))


def refuse_move(always: Sequence[LiveOutput], when_open: Sequence[LiveOutput], error: ValueError) -> tuple[Any, ...]:
    """`refused` as an answer of `move`, or of `preview` if `when_open` is empty."""
    before, after = (
        [gr.skip() for live_output in live_outputs for _ in live_output.outputs] for live_outputs in (always, when_open)
    )
    return *before, *refused(error), *after


def initial_texts(session: Session, request: Request) -> Callable[[str], Any]:
    """The texts with which the page opens, by the fields of `Moved`; empty without a source of plans."""

    def texts() -> dict[str, Any]:
        values = texts_of(session, request)._asdict()
        return {name: value for name, value in values.items() if not isinstance(value, dict)}  # which is unchanged

    return initial_values(texts)


def measure(session: Session, request: Request, layer: int, pinned: Request | None, client: str) -> Iterator[Measured]:
    """Slice and measure perplexity; yields status, readout, headline, target and actual sparsity, perplexity (HTML).

    A live request is measured after every release of the slider. Any other is measured by a button and continues when
    the slider moves; the texts then describe the new setting, so only the status is updated.
    """
    shown = None
    for event in session.measure(request, client):
        answer = unchanged(Measured)._replace(status=status_line(event))
        perplexities = session.perplexities(request)
        is_in_view = session.jobs.looked_at(client, "request", request) == request
        if is_in_view and (perplexities != shown or event.kind != "busy"):
            hint = gettext("… (being measured)") if event.kind == "busy" else ""
            with suppress(ValueError):  # the job's own error says what is wrong with the setting
                texts = _texts(session, request, session.plan(request), pinned, hint)
                answer = answer._replace(**texts._asdict())
        yield answer
        shown = perplexities


def on_release(
    session: Session, request: Request, layer: int, pinned: Request | None, client: str
) -> Iterator[Measured]:
    """`measure` for live requests without a stored measurement; the others are measured by a button."""
    yield unchanged(Measured)  # gradio clears the outputs of a generator that yields nothing
    if request.is_live and not session.has_stored(request):
        yield from measure(session, request, layer, pinned, client)


def on_prepared(
    session: Session, request: Request, layer: int, pinned: Request | None, client: str
) -> Iterator[Measured]:
    """`measure` for live requests, once the model is calibrated; not where that failed or was cancelled."""
    yield unchanged(Measured)
    if request.is_live and session.is_calibrated(request):
        yield from measure(session, request, layer, pinned, client)


def measure_pinned(session: Session, request: Request, pinned: Request | None, client: str) -> Iterator[Any]:
    """Measure the pinned setting's perplexity if it is not cached, for example after opening a link.

    Yields the status (HTML). `compare_pinned` shows the result, since the slider may have moved meanwhile.
    """
    yield gr.skip()  # gradio clears the outputs of a generator that yields nothing
    if pinned is None or not session.is_calibrated(request) or session.perplexities(pinned).sliced is not None:
        return
    if pinned.is_live or session.is_sliced(pinned):  # slow settings are only sliced by their button
        work = partial(session.measure_perplexities, request=pinned)
        ready = partial(session.ready, request)
        yield from map(status_line, session.jobs.run(client, "pinned", work, Urgency.BACKGROUND, ready))


def compare_pinned(session: Session, request: Request, pinned: Request | None) -> Compared:
    """Readout and headline with the differences from the pinned setting, if its perplexity is measured."""
    if pinned is None or session.perplexities(pinned).sliced is None:
        return unchanged(Compared)
    texts = _texts(session, request, session.plan(request), pinned)
    return Compared(texts.readout, texts.headline)


def _texts(session: Session, request: Request, plan: PlanView | None, pinned: Request | None, hint: str = "") -> Texts:
    measured, pinned_view = session.perplexities(request), _pinned_view(session, request, pinned)
    if plan is not None and plan.provisional and measured.sliced_reading is None:
        hint = gettext("follows in a moment") if measured.protocol else gettext("appears once the model is loaded")
    elif not hint:
        hint = _how_to_measure(request)

    def texts() -> Texts:
        return Texts(
            readout=formatting.readout(plan, measured, pinned_view),
            headline=headline(plan, measured, hint, pinned_view, measure_button(measured)),
            removed=formatting.removed(plan),
            perplexity=formatting.protocol(measured),
        )

    source = session.source(request)
    if plan is None or source is None or pinned is not None:
        return texts()
    # With the plan's numbers, since the calibration may have grown after the plan was made.
    about = ("texts", measured, hint, plan.layers, plan.removed, plan.provisional)
    return session.plans.shown(source, request.slicing, about, texts)


def _how_to_measure(request: Request) -> str:
    """The user's action that measures the perplexity."""
    if request.is_live:
        return gettext("… when you release the slider")
    one_shot = request.slicing.order == "one-shot"
    return gettext("… press “Slice and train”") if one_shot else gettext("… press “Slice sequentially”")


def _pinned_view(session: Session, request: Request, pinned: Request | None) -> PinnedView | None:
    """The pinned setting, or None if it has no plan."""
    if pinned is None:
        return None
    try:
        plan = session.plan(pinned)
    except ValueError:  # the setting was possible with another calibration
        return None
    return PinnedView(name_of(pinned.settings, request.settings), plan, session.perplexities(pinned)) if plan else None
