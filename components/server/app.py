"""The page's class: `gr.Blocks` with a health check, limits for untrusted clients, and an orderly shutdown."""

from __future__ import annotations

import gc
import os
from typing import Any

from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import FileResponse, JSONResponse, Response
from starlette.routing import Route

from .. import limits
from ..gradio_compat.blocks import PatchedBlocks
from ..gradio_compat.callers import McpCallers
from ..gradio_compat.page_config import CachedPage
from ..gradio_compat.requests import NeededRoutes
from ..gradio_compat.streams import OpenStreams
from ..jobs.scheduler import Scheduler
from ..ui.chart_bridge import PLOTLY
from . import process
from .health import Health
from .middleware import KnownHosts, LanguageMiddleware, Pacing, is_loopback

# With these headers a browser lets the page use several threads (`device/`); calls of programs are not concerned.
ISOLATION = {"cross-origin-opener-policy": "same-origin", "cross-origin-embedder-policy": "credentialless"}


class App(PatchedBlocks):
    """`gr.Blocks` for untrusted clients; deletes their uploads after a while.

    Args:
        scheduler: checked by `/healthz`; its jobs are stopped on shutdown.
        options: of `gr.Blocks`.

    Attributes:
        own_routes: the page's own routes, beside gradio's; more may be added before `launch`.
        health: the health check, which also reports a `warming`.
    """

    def __init__(self, scheduler: Scheduler, **options: Any) -> None:
        self._scheduler, self.health = scheduler, Health(scheduler)
        # plotly.js has a route: gradio's file route would reveal where this machine installs packages.
        self.own_routes: list[Route] = [
            Route("/healthz", self._answer_health),
            Route(f"/{PLOTLY.name}", lambda _: FileResponse(PLOTLY, media_type="text/javascript")),
        ]
        seconds = limits.UPLOAD_SECONDS.value
        super().__init__(**{"delete_cache": (max(1, seconds // 6), seconds), **options})

    def launch(self, *args: Any, **options: Any) -> Any:
        """As in gradio, with `own_routes`, a maximum number of pages with state, and an MCP server if hosted.

        `head` is part of the page's HTML.
        """
        options.setdefault("state_session_capacity", limits.PAGES.value)
        options.setdefault("mcp_server", True if limits.hosted() else None)
        kwargs = options.pop("app_kwargs", None) or {}
        server = options.get("server_name") or os.environ.get("GRADIO_SERVER_NAME", "127.0.0.1")
        is_guarded = is_loopback(server) and not limits.hosted()
        paths = {route.path: route.methods or () for route in self.own_routes}
        kwargs = {
            **kwargs,
            "routes": [*self.own_routes, *kwargs.get("routes", ())],
            "middleware": [
                *([Middleware(KnownHosts, lambda: self.share_url)] if is_guarded else []),
                Middleware(NeededRoutes, paths, lambda session: session in self.calls.pending_messages_per_session),
                Middleware(OpenStreams, lambda session: self.calls.pending_messages_per_session.get(session)),
                Middleware(LanguageMiddleware),
                Middleware(CachedPage, ISOLATION | limits.frame_headers(), options.pop("head", "")),
                Middleware(McpCallers),
                Middleware(Pacing),
                *kwargs.get("middleware", ()),
            ],
        }
        return super().launch(*args, **options, app_kwargs=kwargs)

    def block_thread(self) -> None:
        """As in gradio, where `launch` calls it once the server runs."""
        # Exempt all objects there are from garbage collection, which would scan them for a third of a second.
        gc.collect()
        gc.freeze()
        super().block_thread()

    async def _answer_health(self, _: Request) -> Response:
        """The health report, with status 503 if something is wrong."""
        report = await self.health.report(self.calls)
        return JSONResponse(report, 200 if report["ok"] else 503, {"Cache-Control": "no-store"})

    def serve(self, **options: Any) -> None:
        """`launch` until the process receives a signal to end."""
        process.on_signal(self._stop_jobs)
        self.launch(**options)

    def _stop_jobs(self) -> None:
        """Stop every job at its next checkpoint, and wait briefly for that."""
        for job in list(self._scheduler.jobs):
            job.stop()
        process.wait_for(lambda: not self._scheduler.jobs)
