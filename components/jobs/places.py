"""A semaphore for work outside the scheduler's turns, such as reading or writing files, which takes memory and disk."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager

from .job import Job
from .status import Status

LOOK = 0.25  # seconds between two looks for a free place


class Places:
    """At most `count` jobs inside `taken` at a time; the others wait, and say so.

    Args:
        words: the status of a job that waits.
    """

    def __init__(self, count: int, words: str) -> None:
        self._free, self._words = threading.Semaphore(count), words

    @contextmanager
    def taken(self, job: Job) -> Iterator[None]:
        """While open, the job has a place and no turn: as `job.waiting()`. Raises Cancelled, also while it waits."""
        while not self._free.acquire(blocking=False):
            job.emit(Status(self._words))
            job.sleep(LOOK)
        try:
            with job.waiting():
                yield
        finally:
            self._free.release()
