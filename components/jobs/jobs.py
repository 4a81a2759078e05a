"""The running jobs of each client, at most one of each kind; errors as text, progress with the remaining time."""

import logging
import math
import threading
import time
from collections.abc import Callable, Hashable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import psutil

from intraslice.core.errors import NumericalError, UserError
from intraslice.core.progress import Progress, ProgressCallback

from .. import limits
from ..i18n.language import lazy_gettext
from .job import Caller, Job, Scheduler, Urgency
from .status import NUMBERS, Status
from .waiting import Line, Waiting

log = logging.getLogger(__name__)

CANCELLED = lazy_gettext("Cancelled.")
PREFETCH = "prefetch"  # the kind of work for which no client has asked yet
EXPECTED = (UserError, NumericalError, OSError, MemoryError)


@dataclass(eq=False)
class _Running:
    """A client's job, and which part of the view it is for."""

    job: Job
    cancel_when_changed: dict[str, object]
    status: Status | None = None  # its last, if it has a part in the page's status line
    is_superseded: bool = False  # its client has moved on, which says enough


class Jobs:
    """The running jobs of every client. A new one ends the client's former one of its kind."""

    def __init__(self, scheduler: Scheduler | None = None) -> None:
        self.scheduler = scheduler or Scheduler()
        self.caller: Callable[[], Caller] = Caller  # called where a job is started: who starts it
        self._running: list[_Running] = []
        self._clients: dict[str, dict[str, Any]] = {}
        self._lock = threading.RLock()
        self._line = Line()

    def halt(self, client: str, kind: str = "", is_superseded: bool = False) -> None:
        """End a client's jobs, or the one of a kind, at their next checkpoint."""
        for running in self._of(client):
            if kind in ("", running.job.kind):
                running.is_superseded = is_superseded
                running.job.stop()

    def set_view(self, client: str, **at: object) -> None:
        """Set a part of what a client views now, such as `request` or `tab`: jobs for another one are cancelled."""
        self._client(client).update(at)
        for running in self._of(client):
            if any(running.cancel_when_changed.get(what, value) != value for what, value in at.items()):
                running.is_superseded = True
                running.job.stop()

    def view_of(self, client: str, what: str, default: Any) -> Any:
        """A part of what a client views, or the default if that was never set."""
        return self._client(client).get(what, default)

    def status(self, client: str, ready: Callable[[], Status]) -> Status:
        """What a client's status line shows: an error, or else what runs, how the last job ended, or `ready()`.

        Of several jobs it is the newest one's that does not wait.
        """
        number = next(NUMBERS)  # before all else: what has the greatest number comes after the last change
        with self._lock:
            outcome: Status | None = self._client(client).get("outcome")
            running = [one.status for one in self._of(client) if one.status is not None and not one.job.stopped]
        busy = max(reversed(running), key=lambda status: not isinstance(status, Waiting), default=None)
        is_error = outcome is not None and outcome.kind == "error"
        return replace((outcome if is_error else busy or outcome) or ready(), number=number)

    def is_running(self, client: str, kind: str, **cancel_when_changed: object) -> bool:
        """Whether a client's job of a kind runs for just this view, and has neither ended nor been stopped."""
        jobs = [running.job for running in self._of(client) if running.cancel_when_changed == cancel_when_changed]
        return any(job.kind == kind and not (job.stopped or job.ended) for job in jobs)

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
        job.kind = PREFETCH
        with self._lock:
            going_on = [running for running in self._running if running.job.kind != PREFETCH or not running.job.ended]
            self._running = [*going_on, _Running(job, cancel_when_changed)]

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

        While it waits for other clients' jobs, a status says for how many. It ends when `cancel_when_changed`, a part
        of the client's view (`set_view`), changes. Jobs with `ready` have a part in the page's status line, and each of
        their statuses says what that shows. Whatever ends a job, its last event is a status, made after the job is
        forgotten: an error, "Cancelled.", or `ready()`; without `ready` a job that is done has none.
        """
        caller, last = self.caller(), None
        line = None if ready is None else partial(self.status, client, ready)
        # Whoever sees that the job before has ended finds this one, and of two that come at once the second counts the
        # first.
        with self._lock:
            self.halt(client, kind, is_superseded=True)
            refusal = self._refusal(client, caller.address)
            if not refusal:
                job = self.scheduler.start(client, work, urgency, caller, limits.JOB_SECONDS.value)
                job.kind, running = kind, _Running(job, cancel_when_changed)
                self._running.append(running)
            if line is not None:
                self._client(client)["outcome"] = Status(refusal, "error") if refusal else None
        if refusal:
            yield Status(refusal, "error", line=line)
            return
        began = time.monotonic()
        try:
            for event in self._events(job):
                if line is not None and isinstance(event, Status):
                    running.status = event = replace(event, line=line)
                yield event
        except Exception as problem:
            last = failure(problem)
        finally:
            job.stop()
            if job.stopped and not running.is_superseded:
                last = Status(CANCELLED, "ready")
            with self._lock:
                self._running = [other for other in self._running if other is not running]
                if last is not None and line is not None:
                    self._client(client)["outcome"] = last
            self._note_end(job, time.monotonic() - began)
        if last := last or (ready and ready()):
            yield replace(last, stopped=job.stopped, superseded=running.is_superseded, line=line)

    def _events(self, job: Job) -> Iterator[Any]:
        """A job's events, and statuses that say for how many jobs it waits. Raises what the job failed with."""
        shown, shown_at = None, -math.inf
        for events in job.events(limits.QUIET_SECONDS):
            if events:
                shown = None
            elif time.monotonic() >= shown_at + limits.REMINDER_SECONDS:
                waiting = self._line.status(job, self.scheduler)
                if waiting not in (None, shown):
                    shown, shown_at = waiting, time.monotonic()
                    events = [waiting]
            for event, following in zip(events, [*events[1:], None][: len(events)], strict=True):
                if type(event) is not type(following):
                    yield event

    def _note_end(self, job: Job, seconds: float) -> None:
        self._line.note(job)
        how = type(job.error).__name__ if job.error else "stopped" if job.stopped else "done"
        line = "%s: %s after %.1f s, %.1f of its own; the process has %.0f MB"
        log.info(line, job.kind, how, seconds, job.seconds, psutil.Process().memory_info().rss / 1e6)

    def _refusal(self, client: str, address: str) -> str:
        """Why no further job can be taken on, or nothing. The lock is held."""
        jobs = [running.job for running in self._running if running.job.kind != PREFETCH and not running.job.stopped]
        of_client = sum(job.client == client for job in jobs)
        if of_client >= limits.CLIENT_JOBS.value:
            words = "You already have {count} jobs running. Wait for one to finish, or stop one."
            return lazy_gettext(words, count=of_client)
        waiting, has_some = len(jobs), bool(address) and any(job.address == address for job in jobs)
        if not limits.has_room(limits.JOBS, waiting, has_some):
            words = "Too many jobs ({count}) from other sessions are waiting. Try again in a minute."
            return lazy_gettext(words, count=waiting)
        return ""

    def _client(self, name: str) -> dict[str, Any]:
        """What `set_view` has set for a client, and the `outcome` of its last job; the longest unused is forgotten."""
        with self._lock:
            client = self._clients[name] = self._clients.pop(name, {})
            if len(self._clients) > limits.PAGES.value:
                del self._clients[next(iter(self._clients))]
            return client

    def _of(self, client: str) -> list[_Running]:
        with self._lock:
            return [running for running in self._running if running.job.client == client]


def failure(problem: BaseException) -> Status:
    """The status of a failure. An unexpected one is logged, and its text does not reach the client."""
    if isinstance(problem, (ValueError, *EXPECTED)):
        return Status(str(problem) or type(problem).__name__, "error")
    log.error("an internal error", exc_info=problem)
    kind = type(problem).__name__
    text = lazy_gettext("An internal error occurred ({kind}). The server's log has the details.", kind=kind)
    return Status(text, "error")


def job_progress(job: Job, text: str, when_done: bool = False, about: Hashable = None) -> ProgressCallback:
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
        job.emit(Status(text, "busy", event.done, event.total, left, about=about))

    return progress
