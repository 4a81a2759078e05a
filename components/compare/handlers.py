"""The Compare tab's handlers, from control values to HTML. No layout; `models` and `passages` do the work."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from typing import Any

from ..device import wllama
from ..i18n.language import gettext, lazy_gettext
from ..jobs.status import Status
from ..jobs.waiting import Waiting
from ..state.request import Request
from ..ui import formatting
from ..ui.handlers import status_line
from . import answers, html, passages
from .models import Columns
from .views import COLUMNS, OTHER, PINNED, Answer, Costs, Question

UPDATE_SECONDS = 0.15  # between two updates of growing answers; each takes a browser about 50 ms
LONG_WAIT = 10  # seconds from which a wait offers the user's own device
UNFINISHED = ("waiting", "pending", "growing")


def answer(
    columns: Columns,
    request: Request,
    prompt: str,
    tokens: int,
    temperature: float,
    sample_seed: int,
    raw: bool,
    pinned: Request | None,
    other: str,
    client: str,
) -> Iterator[dict[str, Any]]:
    """Answer one prompt with the dense, the IntraSlice and the cross-module model, and with the pinned setting's model.

    `other` is one more model with the same tokenizer, or empty. Yields the status and the answers (HTML). Temperature 0
    is greedy; raw omits the chat template.
    """
    question = Question(prompt, int(tokens), float(temperature), int(sample_seed or 0), bool(raw))
    shown: Mapping[str, Answer] = {}
    latest: Mapping[str, Answer] = {}
    shown_at = 0.0
    columns.note_end(client, stopped=False)
    is_named = True  # still: the user may name another model meanwhile

    def changed(before: answers.Answers, now: answers.Answers) -> dict[str, str]:
        texts = _changed(before, now, request, pinned, other)
        return {name: text for name, text in texts.items() if is_named or name != OTHER}

    for event in answers.answer(columns, request, question, client, pinned, other):
        status = None
        if isinstance(event, Status):
            event = _with_offer(columns, request, event)
            status, event = status_line(event), _with_slicing_progress(latest, event)
        latest = event
        is_named = columns.session.jobs.looked_at(client, "other", other) == other
        if status is not None or _states(latest) != _states(shown) or time.monotonic() > shown_at + UPDATE_SECONDS:
            yield changed(shown, latest) | ({"status": status} if status else {})
            shown, shown_at = latest, time.monotonic()
    if not latest or any(column.state in UNFINISHED for column in latest.values()):
        columns.note_end(client, stopped=True)
        yield changed(shown, {name: _stopped(column) for name, column in latest.items()})


def name_other(columns: Columns, request: Request, other: str, shown: str, client: str) -> dict[str, str]:
    """The column of another model before its answer, and its costs so far (HTML); empty without one.

    `shown` is the column as it is now: an answer of the same model stays.
    """
    columns.session.jobs.look(client, other=other)
    if not other:
        return {"answer": "", "cost": ""}
    cost = {"cost": html.cost(OTHER, _costs(columns, request, other), other)}
    return cost if html.is_of(other, shown) else cost | {"answer": html.answer(OTHER, other=other)}


def refuse_other(problem: ValueError) -> dict[str, str]:
    """The answer to a name that is none, or to invalid settings."""
    return {"answer": formatting.problem(problem), "cost": ""}


def cached_costs(
    columns: Columns, request: Request, layer: int, pinned: Request | None, other: str, client: str
) -> dict[str, str]:
    """Parameters, cache, perplexity and speed of each column so far, and how they were measured (HTML).

    Leaves them unchanged while `costs` measures them: this answer may reach the browser after the last one of that.
    """
    if columns.is_measuring(request, client, pinned, other):
        return {}
    return _cost_texts(columns, request, pinned, other)


def costs(
    columns: Columns, request: Request, pinned: Request | None, other: str, client: str
) -> Iterator[dict[str, Any]]:
    """Measure the missing perplexities and speeds; yields the status and what `cached_costs` returns.

    Does nothing if the client stopped its last answer.
    """
    if columns.was_stopped(client):
        return
    for event in columns.measure(request, client, pinned, other):
        texts = {} if event.stopped else _cost_texts(columns, request, pinned, other)
        yield {"status": status_line(event)} | texts


def next_tokens(columns: Columns, request: Request, prompt: str, raw: bool, client: str) -> Iterator[dict[str, Any]]:
    """The most likely first tokens of an answer, dense and IntraSlice; yields status and table (HTML).

    Does nothing if the client stopped its last answer.
    """
    if not columns.was_stopped(client):
        yield from _next_tokens(columns, request, prompt, raw, client)


def _next_tokens(columns: Columns, request: Request, prompt: str, raw: bool, client: str) -> Iterator[dict[str, Any]]:
    for event in passages.next_tokens(columns, request, prompt, bool(raw), client):
        yield _result("candidates", event, lambda candidates: html.candidates(candidates, prompt))


def passage(columns: Columns, request: Request, passage: str, client: str) -> Iterator[dict[str, Any]]:
    """Score a text: colour each token by its loss increase through slicing; yields status and passage (HTML)."""
    for event in passages.score(columns, request, passage, client):
        yield _result("scored", event, html.passage)


def after_slice(
    columns: Columns, request: Request, prompt: str, raw: bool, sample: str, client: str
) -> Iterator[dict[str, Any]]:
    """Next tokens and passage, if the slice is ready; yields status and both (HTML)."""
    if columns.is_ready(request):
        yield from _next_tokens(columns, request, prompt, raw, client)
        yield from passage(columns, request, sample, client)


def _cost_texts(columns: Columns, request: Request, pinned: Request | None, other: str) -> dict[str, str]:
    costs = _costs(columns, request, other)
    texts = {name: html.cost(name, costs) for name in COLUMNS}
    texts[PINNED] = html.cost("intraslice", _costs(columns, pinned), html.label(PINNED)) if pinned else ""
    texts[OTHER] = html.cost(OTHER, costs, other)
    return texts | {"protocol": html.protocol(costs)}


def _costs(columns: Columns, request: Request, other: str = "") -> Costs:
    try:
        return columns.cached_costs(request, other)
    except ValueError:  # the headline shows what is wrong with the setting
        return Costs({}, {})


def _changed(
    previous: answers.Answers, current: answers.Answers, request: Request, pinned: Request | None, other: str
) -> dict[str, str]:
    sparsities = {name: (pinned if pinned and name == PINNED else request).settings.sparsity for name in current}
    return {
        name: html.answer(name, content, sparsities[name], other)
        for name, content in current.items()
        if previous.get(name) != content
    }


def _with_offer(columns: Columns, request: Request, event: Status) -> Status:
    """The status; one of a long wait offers the user's own device, where that can run the models."""
    is_long = isinstance(event, Waiting) and (event.seconds_left or 0) >= LONG_WAIT
    if not is_long or not wllama.is_fetched() or columns.session.source(request) is None:
        return event
    waiting = formatting.status_text(event)
    return Status(gettext("{waiting}. Choose “Run on: This device” to have the models answer there.", waiting=waiting))


def _with_slicing_progress(shown: answers.Answers, event: Status) -> answers.Answers:
    """The columns; one whose model is being sliced shows the progress of that."""
    progress = lazy_gettext(
        "This model must be sliced before it can answer. {what} {done} of {total}.",
        what=event.text,
        done=event.done,
        total=event.total,
    )
    return {
        name: replace(column, problem=progress)
        if column.state == "pending" and event.total and name != OTHER
        else column
        for name, column in shown.items()
    }


def _states(columns: answers.Answers) -> list[str]:
    return [column.state for column in columns.values()]


def _stopped(column: Answer) -> Answer:
    return replace(column, state="stopped") if column.state in UNFINISHED else column


def _result(name: str, event: Status | passages.PassageResult, render: Callable[[Any], str]) -> dict[str, Any]:
    """The status, or the rendered result; an error is both."""
    if not isinstance(event, Status):
        return {name: render(event)}
    if event.kind == "error":
        return {"status": status_line(event), name: formatting.problem(ValueError(event.text))}
    return {"status": status_line(event)}
