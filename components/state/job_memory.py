"""The memory of running jobs: work that needs much of it waits for earlier work, for the caches, and for other jobs."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import count, takewhile

from transformers import PreTrainedModel

from intraslice.pretrained.memory import available_bytes
from intraslice.recovery.registry import training_bytes

from ..i18n.language import lazy_gettext
from ..jobs.job import Job
from ..jobs.status import Status
from .caches import BUDGET, Caches

WAIT_SECONDS = 60.0  # for memory that other jobs use
LOOK = 0.5  # seconds between two looks
RELEASE = 10  # looks between two requests to the caches: returning memory to the system stops other threads


class JobMemory:
    """What work of one kind that runs at once needs together, kept to the part that the caches leave.

    Each kind has its own: a slice of a partial calibration must not wait for the calibration, which may go on only
    after it.

    Args:
        max_wait: seconds that a job waits for earlier ones.
    """

    def __init__(self, caches: Caches, device: str, max_wait: float = math.inf) -> None:
        self._caches, self._device, self._max_wait = caches, device, max_wait
        self._needed: dict[Job, int] = {}  # bytes, in order of arrival

    def can_train(self, recovery: str, dense: PreTrainedModel, weights: int, length: int) -> bool:
        """Whether training a slice of `dense` in the background leaves half of the jobs' memory to others."""
        return training_bytes(recovery, dense, weights, length) <= self._caches.job_bytes / 2

    @contextmanager
    def reserved(self, job: Job, needed: int, in_use: object) -> Iterator[None]:
        """Wait until earlier work leaves `needed` bytes, then until caches and other jobs do; hold them while open.

        Other jobs give back what they use in a while, so the wait for them ends after `WAIT_SECONDS`; there is none
        where so much is never free. `in_use` is a cached value that is not evicted.
        """
        try:
            self._needed[job], until = needed, time.monotonic() + self._max_wait
            while earlier := list(takewhile(lambda other: other is not job, self._needed)):
                fits = sum(self._needed[other] for other in earlier) + needed <= self._caches.job_bytes
                if fits or time.monotonic() >= until:
                    break
                job.emit(Status(lazy_gettext("Waiting for memory; jobs ahead: {count}", count=len(earlier))))
                job.sleep(LOOK)
            until = time.monotonic() + (WAIT_SECONDS if needed <= self._caches.job_bytes else 0)
            for look in count():
                if look % RELEASE == 0:
                    BUDGET.release(needed, lambda: available_bytes(self._device), in_use)
                if available_bytes(self._device) >= needed or time.monotonic() >= until:
                    break
                job.emit(Status(lazy_gettext("Waiting for memory")))
                job.sleep(LOOK)
            yield
        finally:
            self._needed.pop(job, None)
