"""A semaphore for work that takes memory and disk, such as reading or writing files."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager

from .job import Job
from .status import Status

LOOK = 0.25  # seconds between two looks for a free place


class Places:
    """At most `count` jobs inside `held` or `taken` at a time; the others wait, and say so.

    Args:
        words: the status of a job that waits.
    """

    def __init__(self, count: int, words: str) -> None:
        self._free, self._words = threading.Semaphore(count), words

    @contextmanager
    def taken(self, job: Job) -> Iterator[None]:
        """While open, the job has a place and no turn: as `held` and `job.waiting()`."""
        with self.held(job), job.waiting():
            yield

    @contextmanager
    def held(self, job: Job) -> Iterator[None]:
        """While open, the job has a place. Raises Cancelled, also while it waits."""
        while not self._free.acquire(blocking=False):
            job.emit(Status(self._words))
            job.sleep(LOOK)
        try:
            yield
        finally:
            self._free.release()
