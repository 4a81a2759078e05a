"""A semaphore for work that takes memory and disk, such as reading or writing files."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from .job import Job
from .status import Status

LOOK = 0.5  # seconds between two looks for a free place


class Places:
    """At most `count` jobs have a place at a time; the others wait, and say so.

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
        with self.requested() as take:
            while not take():
                self.wait(job)
            yield

    @contextmanager
    def requested(self) -> Iterator[Callable[[], bool]]:
        """Yields a function that takes a place if one is free, and returns whether it has one; kept while open."""
        has_place = False

        def take() -> bool:
            nonlocal has_place
            has_place = has_place or self._free.acquire(blocking=False)
            return has_place

        try:
            yield take
        finally:
            if has_place:
                self._free.release()

    def wait(self, job: Job) -> None:
        """Say that the job waits, and let others run until it looks again. Raises Cancelled."""
        job.emit(Status(self._words))
        job.sleep(LOOK)
