"""Whether the page works: what `/healthz` tells whoever watches over it."""

from __future__ import annotations

import asyncio
import time

from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from components.gradio_compat.queue import SteadyQueue
from components.jobs import limits
from components.jobs.job import Job
from components.jobs.scheduler import Scheduler

SOON = 0.5  # seconds in which a new job has its turn, unless another one keeps it
BEGAN = time.time()


class Health:
    """Answers by what happens: it starts an empty job, which ends once the job that runs has given up its turn."""

    def __init__(self, scheduler: Scheduler) -> None:
        self._scheduler = scheduler
        self._asked: tuple[Job, float] | None = None

    async def waits(self) -> float:
        """Seconds that one job has kept the turn, as far as that is known; 0.0 where others have theirs."""
        if self._asked is None or self._asked[0].ended:
            self._asked = self._scheduler.start("health", lambda job: None), time.monotonic()
        job, since = self._asked
        until = time.monotonic() + SOON
        while not job.ended and time.monotonic() < until:
            await asyncio.sleep(0.01)
        return 0.0 if job.ended else time.monotonic() - since

    async def report(self, queue: SteadyQueue) -> dict[str, object]:
        """What there is to tell; `ok` is all in one."""
        waits = await self.waits()
        running = queue.is_running
        return {
            "ok": running and waits < limits.STUCK_SECONDS.value,
            "queue": "running" if running else "stopped",
            "calls": queue.open_calls,
            "worker": "free" if not waits else f"in one step for {waits:.1f} s",
            "began": BEGAN,
        }

    async def answer(self, queue: SteadyQueue, _: Request) -> Response:
        """The report as JSON: 200, or 503 where something is wrong."""
        report = await self.report(queue)
        return JSONResponse(report, 200 if report["ok"] else 503, {"Cache-Control": "no-store"})
