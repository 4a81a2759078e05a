"""What visitors have running: one job of a kind each, errors as words, progress with the time that is left."""

from __future__ import annotations

import logging
import math
import threading
import time
from collections.abc import Callable, Generator, Iterator
from typing import Any, NamedTuple, TypeVar

import psutil

from components.i18n.language import later
from components.jobs import limits
from components.jobs.scheduler import PAUSE, Job, Scheduler, Urgency, Waiting
from components.jobs.status import Status
from intraslice.core.errors import NumericalError, UserError
from intraslice.core.progress import Progress

log = logging.getLogger(__name__)

T = TypeVar("T")
EVERY = 0.5  # seconds between two statuses: each costs the page some milliseconds of what it reports on
AHEAD = "ahead"  # the kind of what nobody has asked for yet
REST = 0.15  # seconds without a move, after which a hand may be about to let go
EXPECTED = (UserError, NumericalError, OSError, MemoryError)


class _Running(NamedTuple):
    """A visitor's job, its kind, and what the visitor has to go on looking at for it to go on."""

    kind: str
    job: Job
    looking_at: dict[str, object]


class Jobs:
    """The running jobs of every visitor. A new one ends the visitor's former one of its kind."""

    def __init__(self) -> None:
        self.scheduler = Scheduler()
        # Called where a job begins: what tells, from then on, whether anybody still hears of it.
        self.hearing: Callable[[], Callable[[], bool]] = lambda: lambda: True
        self._running: list[tuple[str, _Running]] = []
        self._lock = threading.Lock()

    def halt(self, visitor: str, kind: str = "") -> bool:
        """End a visitor's jobs, or the one of a kind, at their next step; returns whether there was any."""
        halted = [running for running in self._of(visitor) if kind in ("", running.kind)]
        for running in halted:
            running.job.stop()
        return bool(halted)

    def look(self, visitor: str, **at: object) -> None:
        """Tell what a visitor looks at now, such as `settings` or a `tab`: jobs that follow something else end."""
        for running in self._of(visitor):
            if any(running.looking_at.get(what, seen) != seen for what, seen in at.items()):
                running.job.stop()

    def ahead(self, visitor: str, work: Generator[Any, None, Any], **looking_at: object) -> None:
        """What a visitor will soon ask for, once they have rested for a moment and nobody has anything running.

        Nobody hears of it; it follows the visitor's eyes, and whoever asks shares the work.
        """

        def rested() -> Iterator[Any]:
            yield Waiting(REST)
            if len(self.scheduler.jobs) == 1:
                yield from work

        self.halt(visitor, AHEAD)
        job = self.scheduler.start(visitor, rested(), Urgency.BACKGROUND, most=limits.JOB_SECONDS.value)
        with self._lock:
            going_on = [entry for entry in self._running if not entry[1].job.ended]
            self._running = [*going_on, (visitor, _Running(AHEAD, job, looking_at))]

    def run(
        self,
        visitor: str,
        kind: str,
        work: Generator[T | Status, None, Any],
        urgency: Urgency = Urgency.USUAL,
        **looking_at: object,
    ) -> Iterator[T | Status]:
        """The events of `work` until it ends, fails or is stopped; of those that pile up the last of a type.

        What is expected to fail ends in an error status. With `looking_at` it follows the visitor's eyes, and stops
        without a word; else a stopped one says so.
        """
        self.halt(visitor, kind)
        if refusal := self._refusal(visitor):
            work.close()
            yield Status(refusal, "error")
            return
        job = self.scheduler.start(visitor, work, urgency, self.hearing(), limits.JOB_SECONDS.value)
        entry = visitor, _Running(kind, job, looking_at)
        with self._lock:
            self._running.append(entry)
        began = time.monotonic()
        try:
            for events in job.news():
                for event, following in zip(events, [*events[1:], None], strict=True):
                    if type(event) is not type(following):
                        yield event
            if job.stopped and not looking_at:
                yield Status(later("Stopped"), "ready")
        except EXPECTED as problem:
            yield Status(str(problem) or type(problem).__name__, "error")
        finally:
            job.stop()
            with self._lock:
                self._running = [other for other in self._running if other is not entry]
            how = type(job.error).__name__ if job.error else "stopped" if job.stopped else "done"
            line = "%s: %s after %.1f s, %.1f of its own; the process has %.0f MB"
            memory = psutil.Process().memory_info().rss / 1e6
            log.info(line, kind, how, time.monotonic() - began, job.seconds, memory)

    def _refusal(self, visitor: str) -> str:
        """Why no further job can be taken on, or nothing."""
        with self._lock:
            asked_for = [entry for entry in self._running if entry[1].kind != AHEAD]
        visitors = [name for name, running in asked_for if not running.job.stopped]
        own, waiting = visitors.count(visitor), len(visitors)
        if own >= limits.VISITOR_JOBS.value:
            return later("{count} things of yours are being done already; wait for one, or stop it", count=own)
        if waiting >= limits.JOBS.value:
            return later(
                "{count} jobs of others are before yours, which is too many; try again in a minute", count=waiting
            )
        return ""

    def _of(self, visitor: str) -> list[_Running]:
        with self._lock:
            return [running for name, running in self._running if name == visitor]


def statuses(
    job: Generator[Progress, None, T], text: str, when_done: bool = False
) -> Generator[Status | Waiting, None, T]:
    """A library job's progress as statuses, with the time that is left once a step has been timed.

    As often as somebody can read them, or else `when_done` has grown; between them it only pauses.
    """
    start, moment, done = time.monotonic(), -math.inf, -1
    while True:
        try:
            event = next(job)
        except StopIteration as stop:
            return stop.value
        if event.done == done if when_done else time.monotonic() < moment + EVERY:
            yield PAUSE
            continue
        moment, done = time.monotonic(), event.done
        spent = moment - start
        left = spent / event.done * (event.total - event.done) if event.done else None
        yield Status(text, "busy", event.done, event.total, left)
