"""A semaphore for work that takes memory and disk, such as reading or writing files."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from .job import Job
from .status import Status

RETRY_SECONDS = 0.5  # between two attempts to get a place


class JobSemaphore:
    """At most `count` jobs have a place at a time; the others wait, and say so.

    Args:
        words: the status of a job that waits.
    """

    def __init__(self, count: int, words: str) -> None:
        self._free, self._words = threading.Semaphore(count), words
        self._since: dict[Callable[[], bool], float] = {}

    @property
    def longest(self) -> float:
        """Seconds for which the job that has had its place longest has had it; 0.0 where none has one."""
        now = time.monotonic()
        return now - min(self._since.copy().values(), default=now)

    @contextmanager
    def taken(self, job: Job) -> Iterator[None]:
        """While open, the job has a place and no turn: as `held` and `job.waiting()`."""
        with self.held(job), job.waiting():
            yield

    @contextmanager
    def held(self, job: Job) -> Iterator[None]:
        """While open, the job has a place. Raises Cancelled, also while it waits."""
        with self.requested() as take:
            while not take():
                self.wait(job)
            yield

    @contextmanager
    def requested(self) -> Iterator[Callable[[], bool]]:
        """Yields a function that takes a place if one is free, and returns whether it has one; kept while open."""

        def take() -> bool:
            if take not in self._since and self._free.acquire(blocking=False):
                self._since[take] = time.monotonic()
            return take in self._since

        try:
            yield take
        finally:
            if self._since.pop(take, None) is not None:
                self._free.release()

    def wait(self, job: Job) -> None:
        """Say that the job waits, and let others run until the next attempt. Raises Cancelled."""
        job.emit(Status(self._words))
        job.sleep(RETRY_SECONDS)
