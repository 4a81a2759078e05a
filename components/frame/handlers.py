"""Handlers of the frame's events: what a moved slider shows, and a released one measures; models, tabs, leaving."""

import time
from collections.abc import Callable, Collection, Generator, Iterator, Sequence
from functools import partial
from html import escape
from typing import Any

import gradio as gr

from ..i18n.language import gettext, translate
from ..jobs.job import Urgency
from ..jobs.status import NUMBERS, Status
from ..state import leaderboard
from ..state.choices import AUTO
from ..state.request import Request
from ..state.session import Session
from ..state.settings import Settings
from ..state.views import View
from ..ui import formatting, screen
from ..ui.handlers import LiveOutput, Updates, initial_values, status_line
from .controls import BUDGET_INFO


def preview(
    session: Session,
    live_outputs: Sequence[LiveOutput],
    request: Request,
    layer: int,
    pinned: Request | None,
    client: str,
) -> dict[str, Any]:
    """Ratios, importances and sizes for a setting, from the calibration so far; answers in milliseconds.

    Returns the two charts (JSON), the readout, the headline, target and actual sparsity and the perplexity (HTML), the
    bias set by the importances, and the map of all layers and the chosen layer's matrices (JSON). Readout and headline
    include the differences from the pinned setting, if any.
    """
    values: dict[str, Any] = {}
    for live_output in live_outputs:
        values |= live_output.show(request, layer, client)
    return values | moved(session, session.view(request, client, pinned))


def move(
    session: Session,
    always: Sequence[LiveOutput],
    when_open: Sequence[LiveOutput],
    request: Request,
    layer: int,
    active_tab: str,
    pinned: Request | None,
    client: str,
) -> dict[str, Any]:
    """`preview`, and the active tab's live outputs. One call for both, since two would be too slow while dragging.

    It alone says what the client views, one call at a time. Where the one before ended a measurement that began early,
    `again` repeats it. The estimator that a measurement has chosen becomes the control's value.
    """
    session.jobs.set_view(client, request=request, pinned=pinned, layer=layer)
    active = [live_output for live_output in when_open if live_output.tab == active_tab]
    values = preview(session, [*always, *active], request, layer, pinned, client)
    session.prefetch(request, client)
    if session.jobs.view_of(client, "early", None) == request:
        session.jobs.set_view(client, early=None)
        if not session.jobs.is_running(client, "measure", request=request):
            values["again"] = str(time.time())
    if request.settings.estimator == AUTO and (choice := request.calibration.choice):
        # From here on it is the setting: links, the pinned setting and exports name it.
        values |= {"estimator": choice.name, "again": str(time.time())}
    return values


def moved(session: Session, view: View) -> dict[str, Any]:
    """What a move changes outside of the tabs: the texts of a view, and the bias set by its importances."""
    plan = view.plan
    found = {"bias_found": round(plan.bias, 2)} if plan and view.request.slicing.bias is None else {}
    return {**_texts(session, view), **found}


def _texts(session: Session, view: View) -> dict[str, str]:
    """The texts of a view: made once for all clients at a setting, unless they compare it with a pinned one."""
    plan, source = view.plan, session.source(view.request)
    if plan is None or source is None or view.pinned is not None:
        return screen.numbered(view, screen.texts(view))
    # With the plan's numbers, since the calibration may have grown after the plan was made.
    chosen = view.request.calibration.choice is None, view.request.is_undecided
    about = ("texts", view.perplexities, view.is_measuring, plan.layers, plan.removed, plan.source, *chosen)
    shown = session.plans.shown(source, view.request.slicing, about, lambda: screen.texts(view))
    return screen.numbered(view, shown)


def refuse_move(error: ValueError) -> dict[str, str]:
    """The answer of `move` and `preview` to invalid values: the headline is the error."""
    return {"headline": formatting.numbered(next(NUMBERS), formatting.problem(error))}


def initial_texts(session: Session, request: Request) -> Callable[[str], Any]:
    """The texts with which the page opens, and the bias, by their names; empty without a source of plans."""
    return initial_values(lambda: moved(session, session.view(request, "")))


def measure(session: Session, request: Request, layer: int, pinned: Request | None, client: str) -> Updates:
    """Slice and measure perplexity; yields status, readout, headline, target and actual sparsity, perplexity (HTML).

    A live request is measured after every release of the slider. Any other is measured by a button and continues when
    the slider moves; the texts then describe the new setting, so only the status is updated.
    """
    yield from _drawn(session.measure(request, client), session, request, pinned, client)


def on_release(session: Session, request: Request, layer: int, pinned: Request | None, client: str) -> Updates:
    """`measure_live`; the charts follow a calibration that it makes itself, such as after a cancelled `prepare`."""
    answers = measure_live(session, request, layer, pinned, client)
    yield from followed(answers, session, request, lambda: session.jobs.is_running(client, "prepare"))
    yield {"released": str(time.time())}


def measure_again(session: Session, request: Request, layer: int, pinned: Request | None, client: str) -> Updates:
    """`on_release` where a measurement is missing although the setting is the same, unless it runs."""
    if not session.jobs.is_running(client, "measure", request=request):
        yield from on_release(session, request, layer, pinned, client)


def followed(answers: Updates, session: Session, request: Request, is_told: Callable[[], bool]) -> Updates:
    """The answers; a new value of `Context.again` where the calibration has more sequences, unless that is told.

    Also where the estimator has been chosen.
    """
    before, choice = session.sequences(request), request.calibration.choice
    for answer in answers:
        last, before, last_choice, choice = before, session.sequences(request), choice, request.calibration.choice
        has_changed = choice != last_choice or (before != last and not is_told())
        yield answer | ({"again": f"{before}, {time.time():.1f}"} if has_changed else {})


def measure_live(session: Session, request: Request, layer: int, pinned: Request | None, client: str) -> Updates:
    """`measure` for live requests that were not measured before; the others are measured by a button."""
    is_wanted = request.is_undecided or session.perplexities(request).source.kind != "before"
    if not (request.is_live and is_wanted):
        return
    # Before its own move, the answer to an earlier one may still come, and end it: `move` then lets the page repeat it.
    is_early = session.jobs.view_of(client, "request", request) != request
    session.jobs.set_view(client, early=request if is_early else None)
    last = yield from _drawn(session.measure(request, client), session, request, pinned, client)
    if last is None or not last.superseded:
        session.jobs.set_view(client, early=None)


def on_prepared(session: Session, request: Request, layer: int, pinned: Request | None, client: str) -> Updates:
    """`measure` for live requests, once the model is calibrated; not where that failed or was cancelled."""
    if request.is_live and session.is_calibrated(request):
        yield from followed(measure(session, request, layer, pinned, client), session, request, lambda: True)
    yield {"measured": str(time.time())}


def measure_pinned(session: Session, request: Request, layer: int, pinned: Request | None, client: str) -> Updates:
    """Measure the pinned setting's perplexity if it is not cached, for example after opening a link."""
    if pinned is None or not session.is_calibrated(request) or session.perplexities(pinned).source.kind == "here":
        return
    if pinned.is_live or session.is_sliced(pinned):  # slow settings are only sliced by their button
        work = partial(session.measure_perplexities, request=pinned)
        events = session.jobs.run(client, "pinned", work, Urgency.BACKGROUND, partial(session.ready, request))
        yield from _drawn(events, session, request, pinned, client)


def _drawn(
    events: Iterator[Any], session: Session, request: Request, pinned: Request | None, client: str
) -> Generator[dict[str, Any], None, Status | None]:
    """The newest view after each event, with its texts where the client's have changed. Returns the last status."""
    shown, last = None, None
    for event in events:
        last = event if isinstance(event, Status) else last
        view = session.view(request.now(), client, pinned)
        is_new = view.is_current and view != shown
        yield {"status": formatting.status_line(view.status), **(_texts(session, view) if is_new else {})}
        shown = view
    return last


def memory(session: Session, model: str) -> str:
    """What slicing the model gives and takes, before it is loaded, and its perplexities on the leaderboard (HTML).

    The default model's are in the headline, measured on other windows.
    """
    measured = None if model == Settings().model else leaderboard.measured(model)
    stored = "" if measured is None else f'<p class="isx-quiet">{escape(translate(measured))}</p>'
    try:
        found = session.check(model)
    except (ValueError, OSError) as problem:
        return formatting.problem(problem) + stored
    dense, *_ = found.sizes
    size = next(size for size in found.sizes if size.sparsity == Settings().sparsity / 100)
    least, most = (count / dense.kv_bytes_per_token[0] for count in size.kv_bytes_per_token)
    sentences = {
        gettext("To download: {size}.", size=formatting.size(found.download_bytes)): found.download_bytes,
        gettext(
            "{family}, {layers} layers; {millions:,.0f} M parameters, {parameters} and {size} if {sparsity:.0%} is "
            "removed, with a KV cache of {least:.0%} to {most:.0%}. Slicing takes {needed:.1f} GiB of memory, "
            "{available:.1f} GiB is free; calibrating takes about {time} here.",
            family=found.family,
            layers=found.layers,
            millions=dense.parameters / 1e6,
            parameters=formatting.millions(size.parameters),
            size=formatting.size(size.bytes),
            sparsity=size.sparsity,
            least=least,
            most=most,
            needed=found.memory_bytes / 2**30,
            available=found.available_bytes / 2**30,
            time=formatting.seconds(found.calibration_seconds),
        ): True,
        gettext("Queries and keys keep their width."): found.layer.whole_queries,
        gettext("No files for llama.cpp or the browser."): found.no_gguf,
    }
    text = " ".join(sentence for sentence, applies in sentences.items() if applies)
    return f'<p class="isx-quiet">{escape(text)}</p>{stored}'


def minutes(session: Session, model: str) -> dict[str, Any]:
    """What a calibration of the model takes here by each budget, in the info of their control."""
    try:
        quick, thorough = map(formatting.seconds, session.check(model).budget_seconds.values())
    except (ValueError, OSError):  # `memory` says why
        return {"budget": gr.update(info=translate(BUDGET_INFO))}
    values = {"about": BUDGET_INFO, "quick": quick, "thorough": thorough}
    text = gettext("{about} Here they take about {quick} and {thorough}.", **values)
    return {"budget": gr.update(info=text)}


def prepare(session: Session, request: Request, client: str) -> Iterator[dict[str, str]]:
    """Load the model and calibrate it, unless both are cached.

    Yields the status line (HTML), and a new value of `Context.again` whenever the calibration has more sequences.
    """
    answers = ({"status": status_line(event)} for event in session.prepare(request, client))
    # A following event handles the end.
    yield from followed(answers, session, request, lambda: session.is_calibrated(request))


def fit_size(session: Session, request: Request, size: str, context: int, client: str) -> Updates:
    """Set the sparsity to the smallest whose weights, and KV cache of `context` tokens, fit into a size: "200 MB q8_0".

    Yields the status line (HTML), then the sparsity in per cent and a new value of `Context.refresh`. Weights are
    stored in the model's precision unless the size names a type.
    """
    for event in session.fit_size(request, size, context, client):
        if isinstance(event, Status):
            yield {"status": status_line(event)}
        else:
            yield {"sparsity": event, "refresh": str(time.time())}


def fit_layers(session: Session, request: Request, layer: int) -> dict[str, Any]:
    """Set the layer slider's maximum to the model's last layer, and move the slider there if it is beyond."""
    source = session.source(request)
    if source is None:
        return {}
    last = len(source.profile.layers) - 1
    return {"layer": gr.update(maximum=last, value=min(layer, last))}


def open_tab(session: Session, tabs: Collection[str], active_tab: str, client: str) -> dict[str, str]:
    """Stop the jobs that only other tabs need. Returns a new value for the active tab's signal."""
    session.jobs.set_view(client, tab=active_tab)
    return {active_tab: str(time.time())} if active_tab in tabs else {}


def stop(session: Session, kinds: Sequence[str], client: str) -> None:
    """Stop a page's jobs of some kinds at their next step, or all with the kind "". Their last statuses say so."""
    for kind in kinds:
        session.jobs.halt(client, kind)
