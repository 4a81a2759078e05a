"""Which of gradio's routes the page answers.

Gradio has some ninety, and each version adds more. Several write to disk (`deep_link`), ask other servers (`proxy=`),
tell about other clients (`monitoring`), or are meant for development. A route that neither the page nor a program that
calls it needs is answered 404 before gradio sees the request. So are messages for a session that has called nothing,
which gradio answers with a traceback in the log.

Tried with gradio 6.30 and 6.31. Test: `tests/page/gradio_compat/test_requests.py`.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping

from starlette.datastructures import QueryParams
from starlette.requests import Request
from starlette.responses import PlainTextResponse
from starlette.routing import Match, Route
from starlette.types import ASGIApp, Receive, Scope, Send

READ, WRITE, ANY, API = ("GET", "HEAD"), ("POST",), ("GET", "HEAD", "POST", "DELETE"), "/gradio_api"
MESSAGES = f"{API}/queue/data"  # of a session, as they come
NEEDED = {
    # The page itself.
    **dict.fromkeys(("/", "/config", "/config/", "/favicon.ico", "/manifest.json", "/robots.txt", "/theme.css"), READ),
    **dict.fromkeys(("/assets/{path:path}", "/static/{path:path}", "/svelte/{path:path}"), READ),
    **dict.fromkeys((f"{API}/theme.css", f"{API}/app_id", f"{API}/app_id/", f"{API}/startup-events"), READ),
    f"{API}/heartbeat/{{session_hash}}": READ,
    # Calls, of the page and of programs.
    **dict.fromkeys((MESSAGES, f"{API}/queue/status"), READ),
    **dict.fromkeys((f"{API}/queue/join", f"{API}/cancel", f"{API}/reset", f"{API}/reset/"), WRITE),
    **dict.fromkeys(
        (f"{API}/{way}/{{name}}{end}" for way in ("api", "run", "call", "call/v2") for end in ("", "/")), WRITE
    ),
    **dict.fromkeys((f"{API}/call/{{name}}/{{event}}", f"{API}/call/v2/{{name}}/{{event}}"), READ),
    **dict.fromkeys((f"{API}/info", f"{API}/info/", f"{API}/openapi.json"), READ),
    **dict.fromkeys((f"{API}/mcp", f"{API}/mcp/{{path:path}}"), ANY),
    # Files.
    f"{API}/upload": WRITE,
    f"{API}/upload_progress": READ,
    f"{API}/file={{path:path}}": READ,
}


async def _unreachable(request: Request) -> PlainTextResponse:
    raise AssertionError("these routes are for matching only; none of them is ever called")


class NeededRoutes:
    """ASGI middleware: answers 404 to whatever is neither one of `NEEDED` nor one of the page's own paths.

    Args:
        page_paths: the page's own paths, with the methods of each.
        is_session: whether a session has called something.
    """

    def __init__(
        self, app: ASGIApp, page_paths: Mapping[str, Collection[str]], is_session: Callable[[str], bool]
    ) -> None:
        self._app, self._is_session = app, is_session
        needed: dict[str, Collection[str]] = {**NEEDED, **page_paths}
        self._routes = [Route(path, _unreachable, methods=methods) for path, methods in needed.items()]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Hand the request on, or refuse it."""
        if scope["type"] == "http" and not self._is_needed(scope):
            return await PlainTextResponse("not found", 404)(scope, receive, send)
        return await self._app(scope, receive, send)

    def _is_needed(self, scope: Scope) -> bool:
        # A browser asks with OPTIONS whether another site's page may call: gradio has the answer.
        enough = Match.PARTIAL if scope["method"] == "OPTIONS" else Match.FULL
        found = next((route for route in self._routes if route.matches(scope)[0].value >= enough.value), None)
        if found is not None and found.path == MESSAGES:
            return self._is_session(QueryParams(scope.get("query_string", b"")).get("session_hash", ""))
        return found is not None
