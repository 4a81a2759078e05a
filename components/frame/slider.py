"""Handlers of the sparsity slider: what the page shows while it moves, and measures when it is released."""

from __future__ import annotations

import time
from collections.abc import Callable, Generator, Iterator, Sequence
from functools import partial
from typing import Any, NamedTuple

import gradio as gr

from .. import limits
from ..jobs.job import Urgency
from ..jobs.status import NUMBERS, Status
from ..state.request import Request
from ..state.session import Session
from ..state.views import View
from ..ui import formatting, screen
from ..ui.handlers import LiveOutput, initial_values, values_of


class Moved(NamedTuple):
    """What each move of the slider changes outside of the tabs."""

    readout: Any
    headline: Any
    removed: Any
    perplexity: Any
    bias_found: Any


def preview(
    session: Session,
    always: Sequence[LiveOutput],
    others: Sequence[LiveOutput],
    request: Request,
    layer: int,
    pinned: Request | None,
    client: str,
) -> tuple[Any, ...]:
    """Ratios, importances and sizes for a setting, from the calibration so far; answers in milliseconds.

    Returns the two charts (JSON), the readout, the headline, target and actual sparsity and the perplexity (HTML), the
    bias set by the importances, and the map of all layers and the chosen layer's matrices (JSON). Readout and headline
    include the differences from the pinned setting, if any.
    """
    before, after = (
        [value for live_output in some for value in live_output.show(request, layer, client)]
        for some in (always, others)
    )
    return *before, *moved(session, session.view(request, client, pinned)), *after


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
    """`preview`, and the active tab's live outputs. One call for both, since two would be too slow while dragging.

    It alone says what the client looks at: one call at a time, and the last one of them is of the page's setting.
    """
    session.jobs.set_view(client, request=request)
    values = preview(session, always, (), request, layer, pinned, client)
    session.prefetch(request, client)
    for live_output in when_open:
        is_active = live_output.tab == active_tab
        values += live_output.show(request, layer, client) if is_active else (gr.skip(),) * len(live_output.outputs)
    return values


def moved(session: Session, view: View) -> Moved:
    """The texts of a view, and the bias set by its importances."""
    plan, answer = view.plan, dict[str, Any](_texts(session, view))
    if plan is not None and view.request.slicing.bias is None:
        answer["bias_found"] = round(plan.bias, 2)
    return Moved(*values_of(answer, Moved._fields))


def _texts(session: Session, view: View) -> dict[str, str]:
    """The texts of a view: made once for all clients at a setting, unless they compare it with a pinned one."""
    plan, source = view.plan, session.source(view.request)
    if plan is None or source is None or view.pinned is not None:
        return screen.numbered(view, screen.texts(view))
    # With the plan's numbers, since the calibration may have grown after the plan was made.
    about = ("texts", view.perplexities, view.is_measuring, plan.layers, plan.removed, plan.source)
    shown = session.plans.shown(source, view.request.slicing, about, lambda: screen.texts(view))
    return screen.numbered(view, shown)


def refuse_move(always: Sequence[LiveOutput], when_open: Sequence[LiveOutput], error: ValueError) -> tuple[Any, ...]:
    """The answer of `move` or of `preview` to invalid values: the headline is the error."""
    before, after = (
        [gr.skip() for live_output in live_outputs for _ in live_output.outputs] for live_outputs in (always, when_open)
    )
    refused = formatting.numbered(next(NUMBERS), formatting.problem(error))
    return *before, *values_of({"headline": refused}, Moved._fields), *after


def initial_texts(session: Session, request: Request) -> Callable[[str], Any]:
    """The texts with which the page opens, by the fields of `Moved`; empty without a source of plans."""

    def texts() -> dict[str, Any]:
        values = moved(session, session.view(request, ""))._asdict()
        return {name: value for name, value in values.items() if not isinstance(value, dict)}  # which is unchanged

    return initial_values(texts)


def measure(
    session: Session, request: Request, layer: int, pinned: Request | None, client: str
) -> Iterator[dict[str, Any]]:
    """Slice and measure perplexity; yields status, readout, headline, target and actual sparsity, perplexity (HTML).

    A live request is measured after every release of the slider. Any other is measured by a button and continues when
    the slider moves; the texts then describe the new setting, so only the status is updated.
    """
    yield from _drawn(session.measure(request, client), session, request, pinned, client)


def on_release(
    session: Session, request: Request, layer: int, pinned: Request | None, client: str
) -> Iterator[dict[str, Any]]:
    """`measure` for live requests that were not measured before; the others are measured by a button."""
    is_wanted = request.is_live and session.perplexities(request).source.kind != "before"
    yield {}  # gradio clears the outputs of a generator that yields nothing
    while is_wanted:
        last = yield from _drawn(session.measure(request, client), session, request, pinned, client)
        is_wanted = last is not None and last.superseded and _is_back(session, request, client)


def on_prepared(
    session: Session, request: Request, layer: int, pinned: Request | None, client: str
) -> Iterator[dict[str, Any]]:
    """`measure` for live requests, once the model is calibrated; not where that failed or was cancelled."""
    yield {}
    if request.is_live and session.is_calibrated(request):
        yield from measure(session, request, layer, pinned, client)


def measure_pinned(
    session: Session, request: Request, layer: int, pinned: Request | None, client: str
) -> Iterator[dict[str, Any]]:
    """Measure the pinned setting's perplexity if it is not cached, for example after opening a link."""
    yield {}
    if pinned is None or not session.is_calibrated(request) or session.perplexities(pinned).source.kind == "here":
        return
    if pinned.is_live or session.is_sliced(pinned):  # slow settings are only sliced by their button
        work = partial(session.measure_perplexities, request=pinned)
        events = session.jobs.run(client, "pinned", work, Urgency.BACKGROUND, partial(session.ready, request))
        yield from _drawn(events, session, request, pinned, client)


def _is_back(session: Session, request: Request, client: str) -> bool:
    """Whether the client views the setting although its job was superseded: an earlier move was answered late."""
    deadline = time.monotonic() + limits.LATE_MOVE_SECONDS
    while session.jobs.view_of(client, "request", request) != request:
        if time.monotonic() > deadline:
            return False
        time.sleep(limits.LATE_MOVE_SECONDS / 10)
    return not session.jobs.is_running(client, "measure", request=request)


def _drawn(
    events: Iterator[Any], session: Session, request: Request, pinned: Request | None, client: str
) -> Generator[dict[str, Any], None, Status | None]:
    """The newest view after each of a job's events; its texts where they have changed and are of the client's view.

    Returns the last status.
    """
    shown, last = None, None
    for event in events:
        last = event if isinstance(event, Status) else last
        view = session.view(request, client, pinned)
        is_new = view.is_current and view != shown
        yield {"status": formatting.status_line(view.status), **(_texts(session, view) if is_new else {})}
        shown = view
    return last
