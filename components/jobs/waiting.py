"""What jobs wait for, and say meanwhile: a place where files are read or written, or their turn."""

import math
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from .. import limits
from ..i18n.language import lazy_gettext
from .job import Job, Scheduler
from .status import Status

NEWEST = 0.3  # weight of the newest job in the mean of its kind
STEP = 5  # seconds to which an estimate is rounded up


class JobSemaphore:
    """At most `count` jobs have a place at a time; the others wait, with the status `text`."""

    def __init__(self, count: int, text: str) -> None:
        self._count, self._text = count, text
        self._since: dict[Callable[[], bool], float] = {}

    @property
    def longest(self) -> float:
        """Seconds for which the job that has had its place longest has had it; 0.0 where none has one."""
        now = time.monotonic()
        return now - min(self._since.copy().values(), default=now)

    @contextmanager
    def held(self, job: Job) -> Iterator[None]:
        """While open, the job has a place. Raises Cancelled, also while it waits."""
        with self.requested() as take:
            while not take():
                self.wait(job)
            yield

    @contextmanager
    def requested(self) -> Iterator[Callable[[], bool]]:
        """Yields a function for the turn, which takes a free place and returns whether it has one; kept while open."""

        def take() -> bool:
            if take not in self._since and len(self._since) < self._count:
                self._since[take] = time.monotonic()
            return take in self._since

        try:
            yield take
        finally:
            self._since.pop(take, None)

    def wait(self, job: Job) -> None:
        """Say that the job waits, and let others run until the next attempt. Raises Cancelled."""
        job.emit(Status(self._text))
        job.sleep(limits.RETRY_SECONDS)


@dataclass(frozen=True)
class Waiting(Status):
    """The status of a job that waits for its turn."""


class Line:
    """The jobs in the order in which they come, and the seconds that jobs of a kind take until their first result."""

    def __init__(self) -> None:
        self._mean: dict[str, float] = {}
        self._jobs: list[Job] = []
        self._moment = -math.inf
        self._lock = threading.Lock()

    def note(self, job: Job) -> None:
        """Note how long a job took until its first result, or until its end if it has none."""
        if job.seconds_to_result is None and (job.error is not None or job.stopped):
            return
        seconds = job.seconds if job.seconds_to_result is None else job.seconds_to_result
        with self._lock:
            before = self._mean.setdefault(kind_of(job), seconds)
            self._mean[kind_of(job)] = before + NEWEST * (seconds - before)

    def status(self, job: Job, scheduler: Scheduler) -> Waiting | None:
        """What a job that waits tells, or None if no job of another client comes before it."""
        with self._lock:
            if time.monotonic() > self._moment + limits.LINE_SECONDS:
                self._jobs, self._moment = scheduler.line(), time.monotonic()
            if job not in self._jobs:
                return None
            before = [other for other in self._jobs[: self._jobs.index(job)] if other.client != job.client]
            work: dict[object, float] = {}  # seconds left, of each piece of shared work once
            for other in before:
                if (mean := self._mean.get(kind_of(other))) is not None and not other.has_result:
                    wait = other.wait
                    work[other if wait is None else wait.work] = max(0.0, mean - other.seconds)
        if not before:
            return None
        seconds = math.ceil(sum(work.values()) / STEP) * STEP if work else None
        return Waiting(lazy_gettext("Waiting; jobs ahead: {count}", count=len(before)), seconds_left=seconds)


def kind_of(job: Job) -> str:
    """Its kind without the number that a call of the API has."""
    return job.kind.rstrip(" 0123456789")
