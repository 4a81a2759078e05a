"""The memory of running jobs: work that needs much of it waits for earlier work of its kind, then for free memory."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import takewhile

from transformers import PreTrainedModel

from intraslice.pretrained.memory import available_bytes
from intraslice.recovery.registry import training_bytes

from ..i18n.language import lazy_gettext
from ..jobs.job import Job
from ..jobs.status import Status
from .caches import BUDGET, Caches

WAIT_SECONDS = 60.0  # for memory that other jobs use
LOOK = 1.0  # seconds between two looks


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
        """Wait until earlier work leaves `needed` bytes, then until they are free; they count as needed while open.

        The caches make room, except for `in_use`, and other jobs give back what they use in a while: the wait for them
        ends after `WAIT_SECONDS`, and there is none where so much is never free. The caller checks what is free then.
        """
        self._needed[job], begin = needed, time.monotonic()
        try:
            while (ahead := self._ahead(job)) and time.monotonic() < begin + self._max_wait:
                job.emit(Status(lazy_gettext("Waiting for memory; jobs ahead: {count}", count=ahead)))
                job.sleep(LOOK)
            until = time.monotonic() + (WAIT_SECONDS if needed <= self._caches.job_bytes else 0)
            while not BUDGET.release(needed, self._free_bytes, in_use) and time.monotonic() < until:
                job.emit(Status(lazy_gettext("Waiting for memory")))
                job.sleep(LOOK)
            yield
        finally:
            self._needed.pop(job, None)

    def _ahead(self, job: Job) -> int:
        """The number of jobs before this one, if they leave it too little memory."""
        earlier = list(takewhile(lambda other: other is not job, self._needed))
        needed = sum(self._needed[other] for other in (*earlier, job))
        return len(earlier) if needed > self._caches.job_bytes else 0

    def _free_bytes(self) -> int:
        return available_bytes(self._device)
