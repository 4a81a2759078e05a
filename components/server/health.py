"""The health check `/healthz`, for monitoring."""

from __future__ import annotations

import asyncio
import time

from .. import limits
from ..gradio_compat.queue import SteadyQueue
from ..jobs.job import Job
from ..jobs.scheduler import Scheduler
from ..state.calibrations import READERS
from .warming import Warming

START_TIME = time.time()


class Health:
    """Checks the scheduler by an empty probe job, which ends as soon as the running job has given up its turn.

    Attributes:
        warming: the preparation of the default model, if there is one, whose progress is reported.
    """

    def __init__(self, scheduler: Scheduler) -> None:
        self._scheduler = scheduler
        self.warming: Warming | None = None
        self._probe: tuple[Job, float] | None = None  # and when it was started

    async def report(self, queue: SteadyQueue) -> dict[str, object]:
        """The state of queue and scheduler; `ok` summarises it."""
        blocked, read = await self._blocked_seconds(), READERS.longest
        return {
            "ok": queue.is_running and max(blocked, read) < limits.STUCK_SECONDS.value,
            "queue": "running" if queue.is_running else "stopped",
            "calls": queue.open_calls,
            "worker": "free" if not blocked else f"in one step for {blocked:.1f} s",
            "readers": "free" if not read else f"reading one text for {read:.1f} s",
            "began": START_TIME,
            **({"warming": self.warming.progress} if self.warming else {}),
        }

    async def _blocked_seconds(self) -> float:
        """Seconds for which one job has not given up its turn, measured since the probe's start; 0.0 if none blocks."""
        if self._probe is None or self._probe[0].ended:
            self._probe = self._scheduler.start("health", lambda job: None), time.monotonic()
        job, start = self._probe
        until = time.monotonic() + limits.PROBE_SECONDS
        while not job.ended and time.monotonic() < until:
            await asyncio.sleep(0.01)
        return 0.0 if job.ended else time.monotonic() - start
