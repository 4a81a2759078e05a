"""What students and their lecturer do during a lecture, in browsers of their own, and what they note.

Half of the students release the slider at whole percentages of the default setting. The others are told to try another
estimator, a lower cap or a locked module, at every 5 % from 10 to 50 %: settings of a class repeat, as its tasks do.
"""

from __future__ import annotations

import json
import random
import re
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import httpx

from components.state.settings import PROMPT, Settings
from intraslice.pretrained.precision import choose_dtype
from tests.load.calls import Failed, Notes, Page, _words
from tests.load.room import STUDENT_POLL, Class, insist
from tests.support.page.calling import inputs_of

Listener = Callable[[list[Any], bool], None]  # of what a call answers, and whether that is the last


class Browser(Page):
    """A session as gradio's client keeps it: a heartbeat, and a stream of messages while calls are open."""

    def __init__(self, address: str) -> None:
        super().__init__(address)
        self._listeners: dict[str, tuple[Listener, Callable[[str], None]]] = {}  # and who is told of a failure
        self._changed = threading.Condition()
        self._is_closed = False
        self._streams = httpx.Client(timeout=httpx.Timeout(30.0, read=120.0))
        self._threads = [threading.Thread(target=run, daemon=True) for run in (self._read, self._beat)]

    def open(self) -> None:
        """Fetch the page, and keep the connection that says that it is open."""
        self.http.get(self.address).raise_for_status()
        for thread in self._threads:
            thread.start()

    def close(self) -> None:
        """Leave, as when a tab is closed."""
        with self._changed:
            self._is_closed = True
            self._changed.notify_all()
        self._streams.close()
        self.http.close()

    def call(self, name: str, data: list[Any], listener: Listener, failed: Callable[[str], None]) -> None:
        """Start a call; `listener` gets its answers in another thread. Raises Failed."""
        body = {"data": data, "session_hash": self.session}
        with self._changed:  # so that no answer comes before its listener
            answer = self.http.post(f"{self.api}/call/{name}", json=body)
            if answer.status_code != 200:
                raise Failed(_words(answer))
            self._listeners[answer.json()["event_id"]] = listener, failed
            self._changed.notify_all()

    def _read(self) -> None:
        """Read the session's messages while it has open calls."""
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._listeners or self._is_closed)
                if self._is_closed:
                    return
            try:
                address = f"{self.api}/queue/data?session_hash={self.session}"
                with self._streams.stream("GET", address) as stream:
                    for line in stream.iter_lines():
                        message = json.loads(line.removeprefix("data: ")) if line.startswith("data: ") else None
                        if message and message["msg"] == "close_stream":
                            break  # as a page does
                        if message:
                            self._take(message)
            except (httpx.HTTPError, RuntimeError) as problem:
                if not self._is_closed:
                    self._fail_all(f"{type(problem).__name__}: {problem}")

    def _take(self, message: dict[str, Any]) -> None:
        kind, call = message["msg"], message.get("event_id")
        with self._changed:
            told = self._listeners.pop(call, None) if kind == "process_completed" else self._listeners.get(call)
        if kind == "unexpected_error":
            self._fail_all(str(message.get("message")))
        elif kind in ("process_generating", "process_completed") and told is not None:
            listener, failed = told
            if message["success"]:
                listener(message["output"].get("data", []), kind == "process_completed")
            else:
                failed(str(message["output"]))

    def _fail_all(self, words: str) -> None:
        with self._changed:
            told, self._listeners = self._listeners, {}
        for _, failed in told.values():
            failed(words)

    def _beat(self) -> None:
        with suppress(httpx.HTTPError, RuntimeError):
            while not self._is_closed:
                with self._streams.stream("GET", f"{self.api}/heartbeat/{self.session}") as stream:
                    for _ in stream.iter_raw():
                        if self._is_closed:
                            return
                time.sleep(0.5)


# Students and their lecturer

EVERY, ANSWER_EVERY = 15.0, 180.0  # seconds between two moves, and between two answers of a student
OPENING = 45.0  # seconds in which all open the page
STEPS, STEP_SECONDS = 6, 0.15  # moves of a drag
TASKS: list[dict[str, Any]] = [
    {"estimator": "fisher"},
    {"cap": 70},
    {"locked": "0 mlp 0"},
    {"estimator": "uniform"},
    {"cap": 60},
    {"locked": "15 attention 0"},
]
PROMPTS = [
    PROMPT,
    "Write two sentences about the moon.",
    "What is the capital of France, and what is it known for?",
    "Explain to a child what a magnet does.",
]
NEW_TOKENS = 64
NUMBER = re.compile(r"perplexity</span> <b>[\d.]+</b> → <b>([\d.]+)(?: ± [\d.]+)?</b>")
WINDOWS = re.compile(r"after ([\d.]+) of \d+ windows")
FINAL = re.compile(r'data-sliced="([\d.]+)"')
TOKENS = re.compile(r"\b\d+ tokens?\b")
STOPPED = re.compile(r'class="isx-quiet">[^<]*, stopped')  # by the student's next question


@dataclass
class Measured:
    """A release: its setting, when the first kept and the first live number came, and the numbers by windows."""

    settings: Settings
    released: float
    kept: float | None = None
    live: float | None = None
    until: float | None = None  # the next move, which ends it
    numbers: dict[float, float] = field(default_factory=dict)  # by windows, 0 for all


@dataclass
class Answered:
    """An answer: when its first token came and when it was whole, and its columns (HTML)."""

    settings: Settings
    prompt: str
    asked: float
    first: float | None = None
    whole: float | None = None
    columns: list[str] = field(default_factory=list)


@dataclass
class Lecture:
    """What all share: the page, the notes, and when it is over."""

    address: str
    room: Class
    notes: Notes
    seconds: float
    over: threading.Event = field(default_factory=threading.Event)
    releases: list[Measured] = field(default_factory=list)
    answers: list[Answered] = field(default_factory=list)
    kept: list[tuple[Settings, str]] = field(default_factory=list)  # headlines with a number that was precomputed


class Student:
    """One student, who makes one move after the other until the lecture is over."""

    def __init__(self, lecture: Lecture, number: int) -> None:
        self.lecture, self.number, self.dice = lecture, number, random.Random(number)
        self.settings = Settings(dtype=choose_dtype())
        self.browser = Browser(lecture.address)
        self.measured: Measured | None = None

    def live(self) -> None:
        """Open the page, move, ask once in three minutes, and reload once."""
        over, begin = self.lecture.over, time.monotonic()
        over.wait(self.dice.uniform(0, OPENING))
        self._try("open", self._open)
        threading.Thread(target=self._follow, daemon=True).start()
        asks = begin + OPENING + self.dice.uniform(0, ANSWER_EVERY)
        reloads = begin + self.dice.uniform(0.3, 0.9) * self.lecture.seconds
        while not over.wait(EVERY * self.dice.uniform(0.9, 1.1) - STEPS * STEP_SECONDS):
            if time.monotonic() > reloads:
                reloads = float("inf")
                self._try("reload", self._reload)
            self._try("slider", self._move)
            if time.monotonic() > asks:
                asks += ANSWER_EVERY
                self._try("answer", self._ask)
        self.browser.close()

    def _try(self, kind: str, act: Any) -> None:
        self.lecture.notes.call(kind)
        try:
            act()
        except (Failed, httpx.HTTPError) as problem:
            if not self.lecture.over.is_set():
                self.lecture.notes.failed(kind, f"{type(problem).__name__}: {problem}")

    def _open(self) -> None:
        self.browser.open()
        self.browser.now("restore", [])
        self.browser.now("ratios", inputs_of(self.settings, 0, ""))
        self._call("prepare", [*self.settings], lambda data, is_last: None)

    def _reload(self) -> None:
        self.browser.close()
        if self.measured is not None:
            self.measured.until = time.monotonic()
        self.browser = Browser(self.lecture.address)
        self._open()

    def _choice(self) -> Settings:
        """The setting of the next release."""
        default = Settings(dtype=choose_dtype())
        if self.number % 2 == 0:
            return default._replace(sparsity=self.dice.randint(1, 60))
        task = TASKS[self.number // 2 % len(TASKS)]
        return default._replace(sparsity=self.dice.randrange(10, 55, 5), **task)

    def _move(self) -> None:
        """Drag to another setting, and release."""
        before, target = self.settings.sparsity, self._choice()
        if self.measured is not None and self.measured.until is None:
            self.measured.until = time.monotonic()
        for step in range(1, STEPS + 1):
            sparsity = round(before + (target.sparsity - before) * step / STEPS)
            begin = time.monotonic()
            shown = self.browser.now("ratios", inputs_of(target._replace(sparsity=sparsity), 0, ""))
            answered = time.monotonic()
            self.lecture.notes.slider.append(answered - begin)
            self.lecture.over.wait(STEP_SECONDS)
        self.settings = target
        measured = self.measured = Measured(target, begin)
        self.lecture.releases.append(measured)
        _, _, _, headline, *_ = shown
        if isinstance(headline, str) and NUMBER.search(headline):
            measured.kept = answered
            if "precomputed on" in headline:
                self.lecture.kept.append((target, headline))
        self._call("measure_live", inputs_of(target, 0, ""), partial(self._see_number, measured))

    def _see_number(self, measured: Measured, data: list[Any], is_last: bool) -> None:
        self._see_status("measure_live", data)
        _, readout, headline, *_ = data
        if not isinstance(headline, str) or not (number := NUMBER.search(headline)) or "precomputed on" in headline:
            return
        if measured.live is None:
            measured.live = time.monotonic()
        windows, final = WINDOWS.search(headline), FINAL.search(str(readout))
        if windows:
            measured.numbers[float(windows[1])] = float(number[1])
        elif final:
            measured.numbers[0] = float(final[1])

    def _ask(self) -> None:
        answered = Answered(self.settings, self.dice.choice(PROMPTS), time.monotonic())
        self.lecture.answers.append(answered)
        data = inputs_of(self.settings, answered.prompt, NEW_TOKENS, 0.0, 0, False, "", "")
        self._call("answer", data, partial(self._see_answer, answered))

    def _see_answer(self, answered: Answered, data: list[Any], is_last: bool) -> None:
        self._see_status("answer", data)
        if answered.first is None and isinstance(data[1], str) and TOKENS.search(data[1]):
            answered.first = time.monotonic()
        latest = answered.columns or [""] * 3
        answered.columns = [new if isinstance(new, str) else old for new, old in zip(data[1:4], latest, strict=True)]
        is_stopped = any(map(STOPPED.search, answered.columns))
        if is_last and answered.first is not None and not is_stopped:
            answered.whole = time.monotonic()
            inputs = inputs_of(answered.settings, "", "")
            self._call("costs", inputs, lambda data, is_last: self._see_status("costs", data))

    def _see_status(self, kind: str, data: list[Any]) -> None:
        if data and isinstance(data[0], str) and "isx-error" in data[0]:
            self.lecture.notes.failed(kind, re.sub("<[^>]*>", "", data[0]))

    def _call(self, name: str, data: list[Any], listener: Any) -> None:
        self.lecture.notes.call(name)

        def failed(words: str) -> None:
            if not self.lecture.over.is_set():
                self.lecture.notes.failed(name, words)

        try:
            self.browser.call(name, data, listener, failed)
        except (Failed, httpx.HTTPError) as problem:
            failed(f"{type(problem).__name__}: {problem}")

    def _follow(self) -> None:
        """Follow the class: ask for news as the page does, and predict once."""
        room, me, since, has_predicted = self.lecture.room, f"{self.number:032x}", "", False
        self._try("room", lambda: insist(room, "join", {}, me))
        with httpx.Client(timeout=30) as http:
            while not self.lecture.over.wait(STUDENT_POLL):
                try:
                    address, params = f"{room.address}/rooms/{room.code}/state", {"since": since} if since else {}
                    news = http.get(address, params=params, headers={"x-room-student": me})
                except httpx.TransportError as problem:
                    self.lecture.notes.failed("room", f"{type(problem).__name__}: {problem}")
                    continue
                self.lecture.notes.call("room")
                if news.status_code == 200:
                    since = news.json()["version"]
                if not has_predicted:
                    has_predicted = True
                    body = {"id": f"{self.number:016x}", "step": 1, "value": round(self.dice.uniform(1, 5), 1)}
                    self._try("prediction", lambda body=body: insist(room, "answer", body, me))


def lead(lecture: Lecture) -> None:
    """The lecturer: drags through all sparsities again and again, and looks at the class."""
    lecturer = Student(lecture, 10**6)
    lecturer._try("open", lecturer._open)
    while not lecture.over.wait(EVERY / 3):
        lecturer._try("slider", lecturer._move)
        lecturer._try("room", lambda: lecture.room.lead("step", step=1))
    lecturer.browser.close()
