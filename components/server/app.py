"""The page's class: gradio's, with health, bounds for untrusted clients, and an orderly end."""

from __future__ import annotations

import gc
import logging
from functools import partial
from typing import Any

from starlette.middleware import Middleware
from starlette.responses import FileResponse
from starlette.routing import Route

from components.gradio_compat.blocks import PatchedBlocks
from components.gradio_compat.http.cached_page import CachedPage
from components.gradio_compat.http.routes import NeededRoutes
from components.gradio_compat.upload_folder import delete_uploads
from components.jobs import limits
from components.jobs.scheduler import Scheduler
from components.server import shutdown
from components.server.health import Health
from components.server.language import LanguageMiddleware
from components.ui.chart_bridge import PLOTLY


class App(PatchedBlocks):
    """`gr.Blocks` for untrusted clients; what they upload is deleted after a while.

    Args:
        scheduler: whose jobs `/healthz` looks after.
        options: as `gr.Blocks` has them.
    """

    def __init__(self, scheduler: Scheduler, **options: Any) -> None:
        self._scheduler, self._health = scheduler, Health(scheduler)
        seconds = limits.UPLOAD_SECONDS.value
        super().__init__(**{"delete_cache": (max(1, seconds // 6), seconds), **options})

    def launch(self, *args: Any, **options: Any) -> Any:
        """As in gradio, with `/healthz`, no more pages' state than there is room for, and MCP where it is hosted.

        plotly.js has an address of its own: gradio's would tell everybody where this machine keeps its packages.
        """
        options.setdefault("state_session_capacity", limits.PAGES.value)
        options.setdefault("mcp_server", True if limits.hosted() else None)
        own = [
            Route("/healthz", partial(self._health.answer, self.calls)),
            Route(f"/{PLOTLY.name}", lambda _: FileResponse(PLOTLY, media_type="text/javascript")),
        ]
        kwargs = options.pop("app_kwargs", None) or {}
        kwargs = {
            **kwargs,
            "routes": [*own, *kwargs.get("routes", ())],
            "middleware": [
                Middleware(NeededRoutes, [route.path for route in own], self._has_called),
                Middleware(CachedPage),
                Middleware(LanguageMiddleware),
                *kwargs.get("middleware", ()),
            ],
        }
        return super().launch(*args, **options, app_kwargs=kwargs)

    def _has_called(self, session: str) -> bool:
        return session in self.calls.pending_messages_per_session

    def serve(self, **options: Any) -> None:
        """`launch`, with a line a job in the log, until the process is told to end."""
        logging.basicConfig(format="%(asctime)s %(levelname)s %(name)s: %(message)s")
        logging.getLogger("components").setLevel(logging.INFO)
        shutdown.on_signal(self._stop_jobs, partial(delete_uploads, self))
        gc.collect()
        gc.freeze()  # else a full collection looks through all imports, a third of a second in which nothing answers
        self.launch(**options)

    def _stop_jobs(self) -> None:
        """End every job at its next step, if that comes soon."""
        for job in list(self._scheduler.jobs):
            job.stop()
        shutdown.wait_for(lambda: not self._scheduler.jobs)
