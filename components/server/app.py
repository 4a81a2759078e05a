"""The page's class: `gr.Blocks` with a health check, limits for untrusted clients, and an orderly shutdown."""

import gc
import os
import time
from typing import Any

from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import FileResponse, JSONResponse, Response
from starlette.routing import Route

from .. import limits
from ..gradio_compat.blocks import PatchedBlocks
from ..gradio_compat.callers import mcp_callers
from ..gradio_compat.page_config import CachedPage
from ..gradio_compat.queue import SteadyQueue
from ..gradio_compat.requests import bounded_requests, needed_routes
from ..gradio_compat.streams import open_streams
from ..jobs.job import Scheduler
from ..state.calibrations import READERS
from ..ui.chart_bridge import PLOTLY
from . import process
from .middleware import Pacing, in_language, is_loopback, known_hosts
from .warming import Warming

# With these headers a browser lets the page use several threads (`device/`); calls of programs are not concerned.
ISOLATION = {"cross-origin-opener-policy": "same-origin", "cross-origin-embedder-policy": "credentialless"}
START_TIME = time.time()


def health(scheduler: Scheduler, queue: SteadyQueue, warming: Warming | None) -> dict[str, object]:
    """What `/healthz` says of queue, jobs, readers of texts and, if there is one, the preparation of a model."""
    step, read = scheduler.step_seconds, READERS.longest
    return {
        "ok": not queue.stopped and max(step, read) < limits.STUCK_SECONDS.value,
        "queue": "stopped" if queue.stopped else "running",
        "calls": queue.open_calls,
        "worker": "free" if step < limits.NOTICED_SECONDS else f"in one step for {step:.1f} s",
        "readers": "free" if not read else f"reading one text for {read:.1f} s",
        "began": START_TIME,
        **({"warming": warming.progress} if warming else {}),
    }


class App(PatchedBlocks):
    """`gr.Blocks` for untrusted clients; deletes their uploads after a while, and stops the jobs on shutdown."""

    def __init__(self, scheduler: Scheduler, **options: Any) -> None:
        self._scheduler = scheduler
        self.warming: Warming | None = None  # whose progress `/healthz` reports
        # Beside gradio's; more may be added before `launch`. plotly.js has a route, since gradio's would tell
        # where this machine installs packages.
        self.own_routes: list[Route] = [
            Route("/healthz", self._answer_health),
            Route(f"/{PLOTLY.name}", lambda _: FileResponse(PLOTLY, media_type="text/javascript")),
        ]
        seconds = limits.UPLOAD_SECONDS.value
        super().__init__(**{"delete_cache": (max(1, seconds // 6), seconds), **options})

    def launch(self, *args: Any, **options: Any) -> Any:
        """As in gradio, with `own_routes`, `head` in the page's HTML, limits, and an MCP server if hosted."""
        options.setdefault("state_session_capacity", limits.PAGES.value)
        options.setdefault("mcp_server", True if limits.hosted() else None)
        server = options.get("server_name") or os.environ.get("GRADIO_SERVER_NAME", "127.0.0.1")
        is_guarded = is_loopback(server) and not limits.hosted()
        paths = {route.path: route.methods or () for route in self.own_routes}
        middleware = [
            *([Middleware(known_hosts, lambda: self.share_url)] if is_guarded else []),
            Middleware(needed_routes, paths, lambda session: session in self.calls.pending_messages_per_session),
            Middleware(open_streams, lambda session: self.calls.pending_messages_per_session.get(session)),
            Middleware(in_language),
            Middleware(CachedPage, ISOLATION | limits.frame_headers(), options.pop("head", "")),
            Middleware(mcp_callers),
            Middleware(Pacing),
            Middleware(bounded_requests),
        ]
        return super().launch(*args, **options, app_kwargs={"routes": self.own_routes, "middleware": middleware})

    def block_thread(self) -> None:
        """As in gradio, where `launch` calls it once the server runs."""
        # Exempt all objects there are from garbage collection, which would scan them for a third of a second.
        gc.collect()
        gc.freeze()
        super().block_thread()

    async def _answer_health(self, _: Request) -> Response:
        report = health(self._scheduler, self.calls, self.warming)
        return JSONResponse(report, 200 if report["ok"] else 503, {"Cache-Control": "no-store"})

    def serve(self, **options: Any) -> None:
        """`launch` until the process receives a signal to end."""
        process.on_signal(self._stop_jobs)
        self.launch(**options)

    def _stop_jobs(self) -> None:
        """Stop every job at its next checkpoint, and wait briefly for that."""
        for job in list(self._scheduler.jobs):
            job.stop()
        end = time.monotonic() + process.STEP_SECONDS
        while self._scheduler.jobs and time.monotonic() < end:
            time.sleep(0.01)
