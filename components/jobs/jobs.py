"""The running jobs of each client, at most one of each kind; errors as text, progress with the remaining time."""

from __future__ import annotations

import logging
import math
import threading
import time
from collections.abc import Callable, Generator, Iterator
from dataclasses import dataclass, field, replace
from typing import Any

import psutil

from intraslice.core.errors import NumericalError, UserError
from intraslice.core.progress import Progress, ProgressCallback

from .. import limits
from ..i18n.language import lazy_gettext
from .job import Caller, Job, Urgency
from .scheduler import Scheduler
from .status import Status
from .waiting import Line

log = logging.getLogger(__name__)

CANCELLED = lazy_gettext("Cancelled.")
PREFETCH = "prefetch"  # the kind of work for which no client has asked yet
EXPECTED = (UserError, NumericalError, OSError, MemoryError)
REPEAT = object()  # an event of a job that has to emit its last status again


@dataclass(eq=False)
class _Running:
    """A client's job, its kind, and which part of the view it is for."""

    client: str
    kind: str
    job: Job
    cancel_when_changed: dict[str, object]
    has_line: bool = False  # it shares the page's status line with the client's other jobs
    view: dict[str, object] = field(default_factory=dict)  # what the client has set of it since
    status: Status | None = None  # its last in that line; None again at its end
    is_covered: bool = False  # another job's error is there instead
    is_superseded: bool = False  # its client has moved on, which says enough


class Jobs:
    """The running jobs of every client. A new one ends the client's former one of its kind."""

    def __init__(self, scheduler: Scheduler | None = None) -> None:
        self.scheduler = scheduler or Scheduler()
        self.caller: Callable[[], Caller] = Caller  # called where a job is started: who starts it
        self._running: list[_Running] = []
        self._lock = threading.Lock()
        self._line = Line()

    def halt(self, client: str, kind: str = "", is_superseded: bool = False) -> None:
        """End a client's jobs, or the one of a kind, at their next checkpoint."""
        for running in self._of(client):
            if kind in ("", running.kind):
                running.is_superseded = is_superseded
                running.job.stop()

    def set_view(self, client: str, **at: object) -> None:
        """Set a part of what a client views now, such as `request` or `tab`: jobs for another one are cancelled."""
        for running in self._of(client):
            running.view.update(at)
            if any(running.cancel_when_changed.get(what, value) != value for what, value in at.items()):
                running.is_superseded = True
                running.job.stop()

    def view_of(self, client: str, what: str, default: Any) -> Any:
        """What a client has set of their view since a job of theirs began that still runs."""
        return next((running.view[what] for running in self._of(client) if what in running.view), default)

    def is_running(self, client: str, kind: str, **cancel_when_changed: object) -> bool:
        """Whether a client's job of a kind runs for just this view, and has neither ended nor been stopped."""
        jobs = [
            running.job
            for running in self._of(client)
            if running.kind == kind and running.cancel_when_changed == cancel_when_changed
        ]
        return any(not (job.stopped or job.ended) for job in jobs)

    def prefetch(self, client: str, work: Callable[[Job], Any], **cancel_when_changed: object) -> None:
        """Run what a client will soon ask for, once they have rested for a moment and no client has a job.

        Its events reach no client, and it is cancelled when the client's view changes. Other jobs may share the work.
        """

        def rested(job: Job) -> None:
            job.sleep(limits.REST_SECONDS)
            if len(self.scheduler.jobs) == 1:
                work(job)

        self.halt(client, PREFETCH)
        job = self.scheduler.start(client, rested, Urgency.BACKGROUND, max_seconds=limits.JOB_SECONDS.value)
        with self._lock:
            going_on = [running for running in self._running if running.kind != PREFETCH or not running.job.ended]
            self._running = [*going_on, _Running(client, PREFETCH, job, cancel_when_changed)]

    def run(
        self,
        client: str,
        kind: str,
        work: Callable[[Job], Any],
        urgency: Urgency = Urgency.PEOPLE,
        ready: Callable[[], Status] | None = None,
        **cancel_when_changed: object,
    ) -> Iterator[Any]:
        """The events of `work` until it ends, fails or is stopped; of those that pile up the last of a type.

        While it waits for other clients' jobs, a status says for how many. `cancel_when_changed` is the part of the
        client's view (`set_view`) for which it is: it ends when that changes. The last event is a status that replaces
        what the job has said, whatever ends it: an error, "Cancelled.", or `ready()`. Jobs with `ready` share the
        page's status line. Where others of the client go on, the line is `taken`, and they repeat their statuses.
        """
        self.halt(client, kind, is_superseded=True)
        caller = self.caller()
        with self._lock:  # of two that come at once, the second counts the first
            refusal = self._refusal(client, caller.address)
            if not refusal:
                job = self.scheduler.start(client, work, urgency, caller, limits.JOB_SECONDS.value)
                running = _Running(client, kind, job, cancel_when_changed, has_line=ready is not None)
                self._running.append(running)
        if refusal:
            yield Status(refusal, "error")
            return
        began = time.monotonic()
        try:
            last = yield from self._events(running)
            if job.stopped and not running.is_superseded:
                last = Status(CANCELLED, "ready")
            if last := last or (ready and ready()):
                yield self._last(running, last)
        finally:
            job.stop()
            self._line.note(kind, job)
            with self._lock:
                self._running = [other for other in self._running if other is not running]
            how = type(job.error).__name__ if job.error else "stopped" if job.stopped else "done"
            line = "%s: %s after %.1f s, %.1f of its own; the process has %.0f MB"
            memory = psutil.Process().memory_info().rss / 1e6
            log.info(line, kind, how, time.monotonic() - began, job.seconds, memory)

    def _events(self, running: _Running) -> Generator[Any, None, Status | None]:
        """Yields a job's events; returns the status of its failure, if it fails."""
        job, shown, shown_at = running.job, None, -math.inf
        try:
            for events in job.events(limits.QUIET_SECONDS):
                if events:
                    shown = None
                elif time.monotonic() >= shown_at + limits.REMINDER_SECONDS:
                    waiting = self._line.status(job, self.scheduler, self._kinds())
                    if waiting not in (None, shown):
                        shown, shown_at = waiting, time.monotonic()
                        events = [waiting]
                for event, following in zip(events, [*events[1:], None][: len(events)], strict=True):
                    if type(event) is type(following):
                        continue
                    event = running.status if event is REPEAT else event
                    is_in_line = running.has_line and isinstance(event, Status)
                    running.status = event if is_in_line else running.status
                    yield event
                    running.is_covered &= not is_in_line  # only now the client has it
        except Exception as problem:
            return failure(problem)
        return None

    def _last(self, running: _Running, status: Status) -> Status:
        """A job's last status, which takes the page's line only from the job itself.

        The jobs that go on repeat theirs: only what comes through a job's own events arrives in order.
        """
        with self._lock:
            running.status = None
            others = [other for other in self._running if other.client == running.client and other.status is not None]
            if status.kind == "error" or not running.has_line:
                for other in others if running.has_line else ():
                    other.is_covered = True
                return status
            for other in others if not running.is_covered else ():
                other.job.deliver(REPEAT)
            return replace(status, stopped=running.job.stopped, taken=running.is_covered or bool(others))

    def _refusal(self, client: str, address: str) -> str:
        """Why no further job can be taken on, or nothing. The lock is held."""
        jobs = [running.job for running in self._running if running.kind != PREFETCH and not running.job.stopped]
        of_client = sum(job.client == client for job in jobs)
        if of_client >= limits.CLIENT_JOBS.value:
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


def failure(problem: BaseException) -> Status:
    """The status of a failure. An unexpected one is logged, and its text does not reach the client."""
    if isinstance(problem, (ValueError, *EXPECTED)):
        return Status(str(problem) or type(problem).__name__, "error")
    log.error("an internal error", exc_info=problem)
    kind = type(problem).__name__
    text = lazy_gettext("An internal error occurred ({kind}). The server's log has the details.", kind=kind)
    return Status(text, "error")


def job_progress(job: Job, text: str, when_done: bool = False) -> ProgressCallback:
    """A callback for the library that emits a job's progress as statuses, with the time that is left.

    As often as a client can read them, or else `when_done` has grown; at every other call it is a checkpoint alone.
    """
    start, moment, done = time.monotonic(), -math.inf, -1
    first: int | None = None  # what was done before

    def progress(event: Progress) -> None:
        nonlocal moment, done, first
        first = event.done if first is None else first
        if event.done == done if when_done else time.monotonic() < moment + limits.STATUS_SECONDS:
            job.checkpoint()
            return
        moment, done = time.monotonic(), event.done
        spent = moment - start
        left = spent / (event.done - first) * (event.total - event.done) if event.done > first else None
        job.emit(Status(text, "busy", event.done, event.total, left))

    return progress
