"""What the Compare tab does, from control values to HTML. Knows no layout; `models` and `passages` do the work."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from typing import Any, NamedTuple

import gradio as gr

from components.compare import answers, html, passages
from components.compare.models import Columns
from components.compare.views import COLUMNS, PINNED, Answer, Costs, Question
from components.i18n.language import lazy_gettext
from components.jobs.status import Status
from components.state.request import Request
from components.ui import formatting
from components.ui.handlers import unchanged

PAUSE = 0.15  # seconds between two looks at growing answers: each costs a browser some 50 ms, on a busy machine more
UNFINISHED = ("waiting", "later", "growing")


class Answered(NamedTuple):
    """The status and a column's answer each; fields are named as the methods."""

    status: Any
    dense: Any
    intraslice: Any
    crossmodule: Any
    pinned: Any


class CostTexts(NamedTuple):
    """What each column costs, and how that was measured."""

    dense: Any
    intraslice: Any
    crossmodule: Any
    protocol: Any
    pinned: Any


class CostsMeasured(NamedTuple):
    """The status and all of `CostTexts`."""

    status: Any
    dense: Any
    intraslice: Any
    crossmodule: Any
    protocol: Any
    pinned: Any


class Result(NamedTuple):
    """The status and one result."""

    status: Any
    found: Any


class AfterSlice(NamedTuple):
    """The status, next tokens and passage."""

    status: Any
    candidates: Any
    scored: Any


def answer(
    columns: Columns,
    request: Request,
    prompt: str,
    tokens: int,
    temperature: float,
    sample_seed: int,
    raw: bool,
    pinned: Request | None,
    client: str,
) -> Iterator[Answered]:
    """Answer one prompt with the dense, the IntraSlice and the cross-module model, side by side; and with A's.

    Yields the status and the answers (HTML). Temperature 0 is greedy; raw leaves out the chat template.
    """
    question = Question(prompt, int(tokens), float(temperature), int(sample_seed or 0), bool(raw))
    shown: Mapping[str, Answer] = {}
    latest: Mapping[str, Answer] = {}
    moment = 0.0
    yield unchanged(Answered)
    columns.note_end(client, stopped=False)
    for event in answers.answer(columns, request, question, client, pinned):
        status = gr.skip()
        if isinstance(event, Status):
            status, event = formatting.status(event), _making(latest, event)
        latest = event
        if isinstance(status, str) or _states(latest) != _states(shown) or time.monotonic() > moment + PAUSE:
            yield _changed(shown, latest, request, pinned)._replace(status=status)
            shown, moment = latest, time.monotonic()
    if not latest or any(column.state in UNFINISHED for column in latest.values()):
        columns.note_end(client, stopped=True)
        yield _changed(shown, {name: _halted(column) for name, column in latest.items()}, request, pinned)


def known_costs(columns: Columns, request: Request, layer: int, pinned: Request | None, client: str) -> CostTexts:
    """Parameters, cache, perplexity and speed of each column as far as they are known, and how measured (HTML)."""
    known = _known(columns, request)
    texts = {name: html.cost(name, known) for name in COLUMNS}
    texts[PINNED] = html.cost("intraslice", _known(columns, pinned), html.label(PINNED)) if pinned else ""
    return CostTexts(**texts, protocol=html.protocol(known))


def costs(columns: Columns, request: Request, pinned: Request | None, client: str) -> Iterator[CostsMeasured]:
    """Measure perplexities and speeds that are not known; yields the status and all of `known_costs`.

    Unless the visitor's last answer was stopped: no more work follows that.
    """
    yield unchanged(CostsMeasured)
    if columns.was_stopped(client):
        return
    for event in columns.measure(request, client, pinned):
        yield CostsMeasured(formatting.status(event), *known_costs(columns, request, 0, pinned, client))


def next_tokens(columns: Columns, request: Request, prompt: str, raw: bool, client: str) -> Iterator[Result]:
    """The likeliest first tokens of an answer, dense beside IntraSlice; yields status and table (HTML)."""
    yield unchanged(Result)
    for event in passages.next_tokens(columns, request, prompt, bool(raw), client):
        yield _in_words(event, lambda candidates: html.candidates(candidates, prompt))


def passage(columns: Columns, request: Request, passage: str, client: str) -> Iterator[Result]:
    """Colour a text by the extra loss that slicing costs each of its tokens; yields status and passage (HTML)."""
    yield unchanged(Result)
    for event in passages.score(columns, request, passage, client):
        yield _in_words(event, html.passage)


def after_slice(
    columns: Columns, request: Request, prompt: str, raw: bool, sample: str, client: str
) -> Iterator[AfterSlice]:
    """Next tokens and passage once a slice is there; yields status and both (HTML)."""
    if columns.is_ready(request):
        for event in next_tokens(columns, request, prompt, raw, client):
            yield unchanged(AfterSlice)._replace(status=event.status, candidates=event.found)
        for event in passage(columns, request, sample, client):
            yield unchanged(AfterSlice)._replace(status=event.status, scored=event.found)


def stop(columns: Columns, client: str) -> str:
    """Stop the answer at its next token; returns the status (HTML)."""
    columns.session.jobs.halt(client, "answer")
    return formatting.status(Status(lazy_gettext("Stopped."), "ready"))


def _known(columns: Columns, request: Request) -> Costs:
    try:
        return columns.known(request)
    except ValueError:  # the first line of the page says it
        return Costs({}, {})


def _changed(before: answers.Answers, now: answers.Answers, request: Request, pinned: Request | None) -> Answered:
    sparsities = {name: (pinned if pinned and name == PINNED else request).settings.sparsity for name in now}
    changed = {name: html.answer(name, now[name], sparsities[name]) for name in now if before.get(name) != now[name]}
    return unchanged(Answered)._replace(**changed)


def _making(shown: answers.Answers, event: Status) -> answers.Answers:
    """The columns, of which one whose model is being made says how far that is."""
    words = lazy_gettext(
        "This model is being sliced first. {what} {done} of {total}.",
        what=event.text,
        done=event.done,
        total=event.total,
    )
    return {
        name: replace(column, problem=words) if column.state == "later" and event.total else column
        for name, column in shown.items()
    }


def _states(columns: answers.Answers) -> list[str]:
    return [column.state for column in columns.values()]


def _halted(column: Answer) -> Answer:
    return replace(column, state="stopped") if column.state in UNFINISHED else column


def _in_words(event: Status | passages.Found, words: Callable[[Any], str]) -> Result:
    """Status and result: an error stands where the result would."""
    if not isinstance(event, Status):
        return unchanged(Result)._replace(found=words(event))
    if event.kind == "error":
        return unchanged(Result)._replace(found=formatting.problem(ValueError(event.text)))
    return unchanged(Result)._replace(status=formatting.status(event))
