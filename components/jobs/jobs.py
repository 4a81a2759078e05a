"""The running jobs of each client, at most one of each kind; errors as text, progress with the remaining time."""

from __future__ import annotations

import logging
import math
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import psutil

from intraslice.core.errors import NumericalError, UserError
from intraslice.core.progress import Progress, ProgressCallback

from ..i18n.language import lazy_gettext
from . import limits, status
from .job import Caller, Job
from .scheduler import Scheduler
from .status import Status
from .turns import Urgency
from .waiting import AGAIN, PATIENCE, Line

log = logging.getLogger(__name__)

CANCELLED = lazy_gettext("Cancelled.")
PREFETCH = "prefetch"  # the kind of what nobody has asked for yet
REST = 0.15  # seconds without a move, after which the slider may be about to be released
EXPECTED = (UserError, NumericalError, OSError, MemoryError)


class _Running(NamedTuple):
    """A client's job, its kind, what the client has to go on looking at for it to go on, and has looked at since."""

    client: str
    kind: str
    job: Job
    follows: dict[str, object]
    seen: dict[str, object]


class Jobs:
    """The running jobs of every client. A new one ends the client's former one of its kind."""

    def __init__(self, scheduler: Scheduler | None = None) -> None:
        self.scheduler = scheduler or Scheduler()
        self.caller: Callable[[], Caller] = Caller  # called where a job is started: who starts it
        self._running: list[_Running] = []
        self._lock = threading.Lock()
        self._line = Line()

    def halt(self, client: str, kind: str = "") -> bool:
        """End a client's jobs, or the one of a kind, at their next checkpoint; returns whether there was any."""
        halted = [running for running in self._of(client) if kind in ("", running.kind)]
        for running in halted:
            running.job.stop()
        return bool(halted)

    def look(self, client: str, **at: object) -> None:
        """Tell what a client looks at now, such as `settings` or a `tab`: jobs that follow something else end."""
        for running in self._of(client):
            running.seen.update(at)
            if any(running.follows.get(what, seen) != seen for what, seen in at.items()):
                running.job.stop()

    def looked_at(self, client: str, what: str, default: Any) -> Any:
        """What a client has looked at since a job of theirs began that still runs."""
        return next((running.seen[what] for running in self._of(client) if what in running.seen), default)

    def is_running(self, client: str, kind: str, **follows: object) -> bool:
        """Whether a client's job of a kind runs that follows just this, and nobody has stopped it."""
        jobs = [running.job for running in self._of(client) if running.kind == kind and running.follows == follows]
        return any(not job.stopped for job in jobs)

    def prefetch(self, client: str, work: Callable[[Job], Any], **follows: object) -> None:
        """Run what a client will soon ask for, once they have rested for a moment and nobody has anything running.

        Nobody hears of it; it ends when the client looks at something else, and whoever asks shares the work.
        """

        def rested(job: Job) -> None:
            job.sleep(REST)
            if len(self.scheduler.jobs) == 1:
                work(job)

        self.halt(client, PREFETCH)
        job = self.scheduler.start(client, rested, Urgency.BACKGROUND, max_seconds=limits.JOB_SECONDS.value)
        with self._lock:
            going_on = [running for running in self._running if not running.job.ended]
            self._running = [*going_on, _Running(client, PREFETCH, job, follows, {})]

    def run(
        self,
        client: str,
        kind: str,
        work: Callable[[Job], Any],
        urgency: Urgency = Urgency.USUAL,
        when_stopped: str = CANCELLED,
        **follows: object,
    ) -> Iterator[Any]:
        """The events of `work` until it ends, fails or is stopped; of those that pile up the last of a type.

        While it waits for other clients' jobs, a status says for how many.

        What is expected to fail ends in an error status. With `follows` it ends without a word when the client looks at
        something else (`look`); else a stopped one ends with the status `when_stopped`.
        """
        self.halt(client, kind)
        caller = self.caller()
        with self._lock:  # of two that come at once, the second counts the first
            refusal = self._refusal(client, caller.address)
            if not refusal:
                job = self.scheduler.start(client, work, urgency, caller, limits.JOB_SECONDS.value)
                running = _Running(client, kind, job, follows, {})
                self._running.append(running)
        if refusal:
            yield Status(refusal, "error")
            return
        began = time.monotonic()
        shown, shown_at = None, -math.inf
        try:
            for events in job.events(PATIENCE):
                if events:
                    shown = None
                elif time.monotonic() >= shown_at + AGAIN:
                    waiting = self._line.status(job, self.scheduler, self._kinds())
                    if waiting not in (None, shown):
                        shown, shown_at = waiting, time.monotonic()
                        yield waiting
                for event, following in zip(events, [*events[1:], None][: len(events)], strict=True):
                    if type(event) is not type(following):
                        yield event
            if job.stopped and not follows:
                yield Status(when_stopped, "ready")
        except EXPECTED as problem:
            yield Status(str(problem) or type(problem).__name__, "error")
        finally:
            job.stop()
            self._line.note(kind, job)
            with self._lock:
                self._running = [other for other in self._running if other is not running]
            how = type(job.error).__name__ if job.error else "stopped" if job.stopped else "done"
            line = "%s: %s after %.1f s, %.1f of its own; the process has %.0f MB"
            memory = psutil.Process().memory_info().rss / 1e6
            log.info(line, kind, how, time.monotonic() - began, job.seconds, memory)

    def _refusal(self, client: str, address: str) -> str:
        """Why no further job can be taken on, or nothing. The lock is held."""
        jobs = [running.job for running in self._running if running.kind != PREFETCH and not running.job.stopped]
        of_client = sum(job.client == client for job in jobs)
        if of_client >= limits.VISITOR_JOBS.value:
            return lazy_gettext(
                "You already have {count} jobs running. Wait for one to finish, or stop one.", count=of_client
            )
        waiting, has_some = len(jobs), bool(address) and any(job.address == address for job in jobs)
        if not limits.has_room(limits.JOBS, waiting, has_some):
            return lazy_gettext(
                "Too many jobs ({count}) from other sessions are waiting. Try again in a minute.", count=waiting
            )
        return ""

    def _kinds(self) -> dict[Job, str]:
        with self._lock:
            return {running.job: running.kind for running in self._running}

    def _of(self, client: str) -> list[_Running]:
        with self._lock:
            return [running for running in self._running if running.client == client]


def job_progress(job: Job, text: str, when_done: bool = False) -> ProgressCallback:
    """A callback for the library that emits a job's progress as statuses, with the time that is left.

    As often as somebody can read them, or else `when_done` has grown; at every other call it is a checkpoint alone.
    """
    start, moment, done = time.monotonic(), -math.inf, -1
    first: int | None = None  # what was done before

    def progress(event: Progress) -> None:
        nonlocal moment, done, first
        first = event.done if first is None else first
        if event.done == done if when_done else time.monotonic() < moment + status.EVERY:
            job.checkpoint()
            return
        moment, done = time.monotonic(), event.done
        spent = moment - start
        left = spent / (event.done - first) * (event.total - event.done) if event.done > first else None
        job.emit(Status(text, "busy", event.done, event.total, left))

    return progress
