"""What the Compare tab does, from control values to HTML. Knows no layout; `columns` and `passages` do the work."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import gradio as gr

from components.compare import answers as streaming
from components.compare import html as compare_words
from components.compare import passages
from components.compare.models import Columns
from components.compare.views import COLUMNS, Answer, Costs, Question
from components.session.settings import Settings, Status
from components.ui import formatting
from components.ui.handlers import visitor_of

PAUSE = 0.15  # seconds between two looks at growing answers: each costs a browser some 50 ms, on a busy machine more
UNFINISHED = ("waiting", "later", "growing")


class CompareHandlers:
    """The tab's actions over one `Columns`."""

    def __init__(self, columns: Columns) -> None:
        self.columns = columns
        self._stopped: set[str] = set()  # visitors whose last answer came to no end

    def answer(
        self,
        settings: Settings,
        prompt: str,
        tokens: int,
        temperature: float,
        sample_seed: int,
        raw: bool,
        request: gr.Request,
    ) -> Iterator[tuple]:
        """Answer one prompt with the dense, the IntraSlice and the cross-module model, side by side.

        Yields the status and three answers (HTML). Temperature 0 is greedy; raw leaves out the chat template.
        """
        visitor = visitor_of(request)
        question = Question(prompt, int(tokens), float(temperature), int(sample_seed or 0), bool(raw))
        shown, latest, moment = {}, {}, 0.0
        yield (gr.skip(),) * (1 + len(COLUMNS))
        if not self.columns.attend(visitor):
            self._stopped.add(visitor)
            return
        self._stopped.discard(visitor)
        for event in streaming.answer(self.columns, settings, question, visitor):
            told = gr.skip()
            if isinstance(event, Status):
                told, event = formatting.status(event), _making(latest, event)
            latest = event
            if isinstance(told, str) or _states(latest) != _states(shown) or time.monotonic() > moment + PAUSE:
                yield told, *self._changed(shown, latest, settings)
                shown, moment = latest, time.monotonic()
        if not latest or any(one.state in UNFINISHED for one in latest.values()):
            self._stopped.add(visitor)
            halted = {name: _halted(one) for name, one in latest.items()}
            yield gr.skip(), *self._changed(shown, halted, settings)

    def _changed(self, before: streaming.Answers, now: streaming.Answers, settings: Settings) -> list:
        return [
            gr.skip()
            if name not in now or before.get(name) == now[name]
            else compare_words.answer(name, now[name], settings.sparsity)
            for name in COLUMNS
        ]

    def known_costs(self, settings: Settings, layer: int, request: gr.Request) -> tuple[str, ...]:
        """Parameters, cache, perplexity and speed of each column as far as they are known, and how measured (HTML)."""
        try:
            costs = self.columns.known(settings)
        except ValueError:  # the first line of the page says it
            costs = Costs({}, {})
        return (*(compare_words.cost(name, costs) for name in COLUMNS), compare_words.protocol(costs))

    def costs(self, settings: Settings, request: gr.Request) -> Iterator[tuple]:
        """Measure perplexities and speeds that are not known; yields the status and all of `known_costs`."""
        for event in self.columns.measure(settings, visitor_of(request)):
            yield formatting.status(event), *self.known_costs(settings, 0, request)

    def costs_once(self, settings: Settings, request: gr.Request) -> Iterator[tuple]:
        """`costs`, unless the visitor's last answer was stopped: no more work follows that."""
        yield (gr.skip(),) * (2 + len(COLUMNS))
        if visitor_of(request) not in self._stopped:
            yield from self.costs(settings, request)

    def next_tokens(self, settings: Settings, prompt: str, raw: bool, request: gr.Request) -> Iterator[tuple]:
        """The likeliest first tokens of an answer, dense beside IntraSlice; yields status and table (HTML)."""
        yield gr.skip(), gr.skip()
        for event in passages.next_tokens(self.columns, settings, prompt, bool(raw), visitor_of(request)):
            yield _said(event, lambda found: compare_words.candidates(found, prompt))

    def passage(self, settings: Settings, passage: str, request: gr.Request) -> Iterator[tuple]:
        """Colour a text by the extra loss that slicing costs each of its tokens; yields status and passage (HTML)."""
        yield gr.skip(), gr.skip()
        for event in passages.score(self.columns, settings, passage, visitor_of(request)):
            yield _said(event, compare_words.passage)

    def after_slice(
        self, settings: Settings, prompt: str, raw: bool, passage: str, tab: str, request: gr.Request
    ) -> Iterator[tuple]:
        """Next tokens and passage once a slice is there and the tab in view; yields status and both (HTML)."""
        yield gr.skip(), gr.skip(), gr.skip()
        if tab == "compare" and self.columns.is_ready(settings):
            for status, found in self.next_tokens(settings, prompt, raw, request):
                yield status, found, gr.skip()
            for status, scored in self.passage(settings, passage, request):
                yield status, gr.skip(), scored

    def halt(self, request: gr.Request) -> str:
        """Stop the answer at its next token, or else the question that waits its turn; returns the status (HTML)."""
        if not self.columns.session.halt(visitor_of(request)):
            self.columns.call_off(visitor_of(request))
        return formatting.status(Status("Stopped.", "ready"))

    def ask(self, request: gr.Request) -> None:
        """Let what is measured in the background give way to a question."""
        self.columns.ask(visitor_of(request))


def _making(shown: streaming.Answers, event: Status) -> streaming.Answers:
    """The columns, of which one whose model is being made says how far that is."""
    words = f"This model is being made first: layer {event.done} of {event.total}."
    return {
        name: replace(one, problem=words) if one.state == "later" and event.total else one
        for name, one in shown.items()
    }


def _states(answers: streaming.Answers) -> list[str]:
    return [one.state for one in answers.values()]


def _halted(given: Answer) -> Answer:
    return replace(given, state="stopped") if given.state in UNFINISHED else given


def _said(event: Status | passages.Found, words: Callable[[Any], str]) -> tuple:
    """Status and result: an error stands where the result would."""
    if not isinstance(event, Status):
        return gr.skip(), words(event)
    if event.kind == "error":
        return gr.skip(), formatting.problem(ValueError(event.text))
    return formatting.status(event), gr.skip()
