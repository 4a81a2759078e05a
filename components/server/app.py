"""The page as it is served: gradio's own, with a queue that lasts and a word on its health."""

from __future__ import annotations

import logging
from functools import partial
from typing import Any

import gradio as gr
from gradio.route_utils import delete_files_created_by_app
from starlette.middleware import Middleware
from starlette.responses import FileResponse
from starlette.routing import Route

from components.gradio_compat.queue import SteadyQueue
from components.gradio_compat.shared_config import SharedConfig
from components.gradio_compat.translated_config import TranslatedConfig
from components.jobs import limits
from components.jobs.scheduler import Scheduler
from components.server import shutdown as ending
from components.server.health import Health
from components.server.language import InTheirLanguage
from components.ui.chart_bridge import PLOTLY


class App(gr.Blocks):
    """`gr.Blocks` that strangers may call; what they upload goes after a while.

    Args:
        scheduler: whose worker `/healthz` looks after.
        options: as `gr.Blocks` has them.
    """

    def __init__(self, scheduler: Scheduler, **options: Any) -> None:
        self._scheduler, self._health = scheduler, Health(scheduler)
        seconds = limits.UPLOAD_SECONDS.value
        super().__init__(**{"delete_cache": (max(1, seconds // 6), seconds), **options})
        self.default_config.__class__ = SharedConfig

    @property
    def config(self) -> dict[str, Any]:
        """As gradio's, in the language of whoever asks."""
        return self._translated.now()

    @config.setter
    def config(self, config: dict[str, Any]) -> None:
        self._translated = TranslatedConfig(config)

    def queue(self, *args: Any, **options: Any) -> App:
        """As gradio's."""
        super().queue(*args, **options)
        made = self._queue
        self._queue = SteadyQueue(
            live_updates=made.live_updates,
            concurrency_count=made.max_thread_count,
            update_intervals=made.update_intervals,
            max_size=made.max_size,
            blocks=self,
            default_concurrency_limit=made.default_concurrency_limit,
        )
        return self

    def launch(self, *args: Any, **options: Any) -> Any:
        """As gradio's, with `/healthz`, no more pages' state than there is room for, and MCP where it is hosted.

        plotly.js has an address of its own: gradio's would tell everybody where this machine keeps its packages.
        """
        options.setdefault("state_session_capacity", limits.PAGES.value)
        options.setdefault("mcp_server", True if limits.hosted() else None)
        own = [
            Route("/healthz", partial(self._health.answer, self._queue)),
            Route(f"/{PLOTLY.name}", lambda _: FileResponse(PLOTLY, media_type="text/javascript")),
        ]
        kwargs = options.pop("app_kwargs", None) or {}
        kwargs = {
            **kwargs,
            "routes": [*own, *kwargs.get("routes", ())],
            "middleware": [Middleware(InTheirLanguage), *kwargs.get("middleware", ())],
        }
        return super().launch(*args, **options, app_kwargs=kwargs)

    def serve(self, **options: Any) -> None:
        """`launch`, with a line a job in the log, until the process is told to end."""
        logging.basicConfig(format="%(asctime)s %(levelname)s %(name)s: %(message)s")
        logging.getLogger("components").setLevel(logging.INFO)
        ending.when_told(self._stop_jobs, partial(delete_files_created_by_app, self, age=None))
        self.launch(**options)

    def _stop_jobs(self) -> None:
        """End every job at its next step, if that comes soon."""
        for job in list(self._scheduler.jobs):
            job.stop()
        ending.until(lambda: not self._scheduler.jobs)
