"""Long work that can be stopped: one job a visitor, errors as words, progress with the time that is left."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Generator, Iterator
from dataclasses import dataclass, field
from typing import TypeVar

from components.session.settings import Status
from intraslice.errors import NumericalError, UserError
from intraslice.progress import Progress

log = logging.getLogger(__name__)

T = TypeVar("T")
END = object()
EXPECTED = (UserError, NumericalError, OSError, MemoryError)


@dataclass
class Job:
    """A running piece of work. A live one follows the slider, and gives way to what is `about` something else.

    One that only a `tab` shows stops when that tab is left.
    """

    live: bool
    about: object = None
    tab: str = ""
    stop: threading.Event = field(default_factory=threading.Event)


class Jobs:
    """The running job of every visitor. A new one stops the visitor's old one, at its next step."""

    def __init__(self) -> None:
        self._running: dict[str, Job] = {}
        self._gone: set[str] = set()

    def halt(self, visitor: str) -> bool:
        """Stop a visitor's job at its next step; returns whether there was one."""
        job = self._running.get(visitor)
        if job:
            job.stop.set()
        return job is not None

    def leave(self, visitor: str) -> None:
        """Stop the job of a page that was closed, and what it asked for too late to be seen: nobody else would."""
        self.halt(visitor)
        self._gone.add(visitor)

    def give_way(self, visitor: str, about: object) -> None:
        """Stop a visitor's live job unless it is about this; what was asked for by a button goes on."""
        self._gone.discard(visitor)  # whoever moves a slider had but a connection that blinked
        job = self._running.get(visitor)
        if job and job.live and job.about != about:
            job.stop.set()

    def switch_tab(self, visitor: str, tab: str) -> None:
        """Stop a visitor's job that only another tab shows."""
        self._gone.discard(visitor)
        job = self._running.get(visitor)
        if job and job.tab and job.tab != tab:
            job.stop.set()

    def start(self, visitor: str, live: bool, about: object = None, tab: str = "") -> Job:
        """A job to `run`; the visitor's former one is told to stop."""
        self.halt(visitor)
        job = self._running[visitor] = Job(live, about, tab)
        if visitor in self._gone:
            job.stop.set()
        return job

    def run(self, visitor: str, job: Job, work: Iterator[T]) -> Iterator[T | Status]:
        """The events of `work` until it ends, fails or is stopped. What is expected to fail ends in an error status."""
        try:
            while not job.stop.is_set():
                event = next(work, END)
                if event is END:
                    return
                if not job.stop.is_set():
                    yield event
            if not job.live:
                yield Status("Stopped", "ready")
        except EXPECTED as problem:
            log.info("job failed: %s", problem)
            yield Status(str(problem) or type(problem).__name__, "error")
        finally:
            job.stop.set()
            if self._running.get(visitor) is job:
                del self._running[visitor]


def statuses(job: Generator[Progress, None, T], text: str) -> Generator[Status, None, T]:
    """A library job's progress as statuses, with the time that is left once a step has been timed."""
    start = time.monotonic()
    while True:
        try:
            event = next(job)
        except StopIteration as stop:
            return stop.value
        spent = time.monotonic() - start
        left = spent / event.done * (event.total - event.done) if event.done else None
        yield Status(text, "busy", event.done, event.total, left)
