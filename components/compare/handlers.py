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
from components.i18n.language import later
from components.jobs.status import Status
from components.state.settings import Settings
from components.ui import formatting
from components.ui.handlers import unchanged, visitor_of

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
    settings: Settings,
    prompt: str,
    tokens: int,
    temperature: float,
    sample_seed: int,
    raw: bool,
    pinned: Settings | None,
    request: gr.Request,
) -> Iterator[Answered]:
    """Answer one prompt with the dense, the IntraSlice and the cross-module model, side by side; and with A's.

    Yields the status and the answers (HTML). Temperature 0 is greedy; raw leaves out the chat template.
    """
    visitor = visitor_of(request)
    question = Question(prompt, int(tokens), float(temperature), int(sample_seed or 0), bool(raw))
    shown: Mapping[str, Answer] = {}
    latest: Mapping[str, Answer] = {}
    moment = 0.0
    yield unchanged(Answered)
    columns.note_end(visitor, stopped=False)
    for event in answers.answer(columns, settings, question, visitor, pinned):
        status = gr.skip()
        if isinstance(event, Status):
            status, event = formatting.status(event), _making(latest, event)
        latest = event
        if isinstance(status, str) or _states(latest) != _states(shown) or time.monotonic() > moment + PAUSE:
            yield _changed(shown, latest, settings, pinned)._replace(status=status)
            shown, moment = latest, time.monotonic()
    if not latest or any(column.state in UNFINISHED for column in latest.values()):
        columns.note_end(visitor, stopped=True)
        yield _changed(shown, {name: _halted(column) for name, column in latest.items()}, settings, pinned)


def known_costs(
    columns: Columns, settings: Settings, layer: int, pinned: Settings | None, request: gr.Request
) -> CostTexts:
    """Parameters, cache, perplexity and speed of each column as far as they are known, and how measured (HTML)."""
    known = _known(columns, settings)
    texts = {name: html.cost(name, known) for name in COLUMNS}
    texts[PINNED] = html.cost("intraslice", _known(columns, pinned), html.label(PINNED)) if pinned else ""
    return CostTexts(**texts, protocol=html.protocol(known))


def costs(
    columns: Columns, settings: Settings, pinned: Settings | None, request: gr.Request
) -> Iterator[CostsMeasured]:
    """Measure perplexities and speeds that are not known; yields the status and all of `known_costs`.

    Unless the visitor's last answer was stopped: no more work follows that.
    """
    yield unchanged(CostsMeasured)
    if columns.was_stopped(visitor_of(request)):
        return
    for event in columns.measure(settings, visitor_of(request), pinned):
        yield CostsMeasured(formatting.status(event), *known_costs(columns, settings, 0, pinned, request))


def next_tokens(columns: Columns, settings: Settings, prompt: str, raw: bool, request: gr.Request) -> Iterator[Result]:
    """The likeliest first tokens of an answer, dense beside IntraSlice; yields status and table (HTML)."""
    yield unchanged(Result)
    for event in passages.next_tokens(columns, settings, prompt, bool(raw), visitor_of(request)):
        yield _in_words(event, lambda candidates: html.candidates(candidates, prompt))


def passage(columns: Columns, settings: Settings, passage: str, request: gr.Request) -> Iterator[Result]:
    """Colour a text by the extra loss that slicing costs each of its tokens; yields status and passage (HTML)."""
    yield unchanged(Result)
    for event in passages.score(columns, settings, passage, visitor_of(request)):
        yield _in_words(event, html.passage)


def after_slice(
    columns: Columns, settings: Settings, prompt: str, raw: bool, sample: str, request: gr.Request
) -> Iterator[AfterSlice]:
    """Next tokens and passage once a slice is there; yields status and both (HTML)."""
    if columns.is_ready(settings):
        for event in next_tokens(columns, settings, prompt, raw, request):
            yield unchanged(AfterSlice)._replace(status=event.status, candidates=event.found)
        for event in passage(columns, settings, sample, request):
            yield unchanged(AfterSlice)._replace(status=event.status, scored=event.found)


def stop(columns: Columns, request: gr.Request) -> str:
    """Stop the answer at its next token; returns the status (HTML)."""
    columns.session.jobs.halt(visitor_of(request), "answer")
    return formatting.status(Status(later("Stopped."), "ready"))


def _known(columns: Columns, settings: Settings) -> Costs:
    try:
        return columns.known(settings)
    except ValueError:  # the first line of the page says it
        return Costs({}, {})


def _changed(before: answers.Answers, now: answers.Answers, settings: Settings, pinned: Settings | None) -> Answered:
    sparsities = {name: (pinned if pinned and name == PINNED else settings).sparsity for name in now}
    changed = {name: html.answer(name, now[name], sparsities[name]) for name in now if before.get(name) != now[name]}
    return unchanged(Answered)._replace(**changed)


def _making(shown: answers.Answers, event: Status) -> answers.Answers:
    """The columns, of which one whose model is being made says how far that is."""
    words = later(
        "This model is being made first. {what} {done} of {total}.",
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
