"""The page's class: `gr.Blocks` with a health check, limits for untrusted clients, and an orderly shutdown."""

from __future__ import annotations

import gc
import logging
import os
from typing import Any

from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import FileResponse, Response
from starlette.routing import Route

from .. import limits
from ..gradio_compat.blocks import PatchedBlocks
from ..gradio_compat.http.cached_page import CachedPage
from ..gradio_compat.http.mcp import McpCallers, prepare_mcp
from ..gradio_compat.http.routes import NeededRoutes
from ..gradio_compat.http.streams import OpenStreams
from ..jobs.scheduler import Scheduler
from ..ui.chart_bridge import PLOTLY
from . import shutdown
from .health import Health
from .hosts import KnownHosts, is_loopback
from .language import LanguageMiddleware
from .pacing import Pacing

# With these headers a browser lets the page use several threads (`device/`); calls of programs are not concerned.
ISOLATION = {"cross-origin-opener-policy": "same-origin", "cross-origin-embedder-policy": "credentialless"}
PACKAGE = __name__.partition(".")[0]


def _freeze() -> None:
    """Exempt all objects there are from garbage collection, which would scan them for a third of a second."""
    gc.collect()
    gc.freeze()


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
        self._prepared_mcp: object = None
        # plotly.js has a route: gradio's file route would reveal where this machine installs packages.
        self.own_routes: list[Route] = [
            Route("/healthz", self._answer_health),
            Route(f"/{PLOTLY.name}", lambda _: FileResponse(PLOTLY, media_type="text/javascript")),
        ]
        seconds = limits.UPLOAD_SECONDS.value
        super().__init__(**{"delete_cache": (max(1, seconds // 6), seconds), **options})

    def launch(self, *args: Any, **options: Any) -> Any:
        """As in gradio, with `own_routes`, a maximum number of pages with state, and an MCP server if hosted."""
        options.setdefault("state_session_capacity", limits.PAGES.value)
        options.setdefault("mcp_server", True if limits.hosted() else None)
        kwargs = options.pop("app_kwargs", None) or {}
        server = options.get("server_name") or os.environ.get("GRADIO_SERVER_NAME", "127.0.0.1")
        is_guarded = is_loopback(server) and not limits.hosted()
        kwargs = {
            **kwargs,
            "routes": [*self.own_routes, *kwargs.get("routes", ())],
            "middleware": [
                *([Middleware(KnownHosts, lambda: self.share_url)] if is_guarded else []),
                Middleware(
                    NeededRoutes, {route.path: route.methods or () for route in self.own_routes}, self._has_called
                ),
                Middleware(OpenStreams, lambda session: self.calls.pending_messages_per_session.get(session)),
                Middleware(CachedPage, ISOLATION | limits.frame_headers()),
                Middleware(McpCallers),
                Middleware(LanguageMiddleware),
                Middleware(Pacing),
                *kwargs.get("middleware", ()),
            ],
        }
        launched = super().launch(*args, **options, app_kwargs=kwargs)
        self._prepare_mcp()
        return launched

    def block_thread(self) -> None:
        """As in gradio, where `launch` calls it once the server runs."""
        self._prepare_mcp()
        _freeze()  # also what `launch` has made
        super().block_thread()

    def _prepare_mcp(self) -> None:
        """Once, before the first call: describing all tools takes the event loop half a second."""
        server = self.mcp_server_obj
        if server is not None and server is not self._prepared_mcp:
            self._prepared_mcp = server
            prepare_mcp(server)

    async def _answer_health(self, request: Request) -> Response:
        return await self.health.answer(self.calls, request)

    def _has_called(self, session: str) -> bool:
        return session in self.calls.pending_messages_per_session

    def serve(self, **options: Any) -> None:
        """`launch` with logging of each job, until the process receives a signal to end."""
        logging.basicConfig(format="%(asctime)s %(levelname)s %(name)s: %(message)s")
        logging.getLogger(PACKAGE).setLevel(logging.INFO)
        shutdown.on_signal(self._stop_jobs)
        _freeze()
        self.launch(**options)

    def _stop_jobs(self) -> None:
        """Stop every job at its next checkpoint, and wait briefly for that."""
        for job in list(self._scheduler.jobs):
            job.stop()
        shutdown.wait_for(lambda: not self._scheduler.jobs)
