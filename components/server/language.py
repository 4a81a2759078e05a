"""The language of each answer: the address names it (`?lang=de`), else the browser does."""

from __future__ import annotations

from starlette.datastructures import Headers, QueryParams
from starlette.types import ASGIApp, Receive, Scope, Send

from components.gradio_compat.browser.language import mark_language
from components.i18n.language import requested_language, use_language


class LanguageMiddleware:
    """ASGI middleware: requests are answered in their language, and HTML pages say which that is."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Hand the request on."""
        if scope["type"] != "http":
            return await self._app(scope, receive, send)
        query = QueryParams(scope.get("query_string", b""))
        code = requested_language(query, Headers(scope=scope).get("accept-language"))
        with use_language(code):
            is_get = scope["method"] == "GET"
            await self._app(scope, receive, mark_language(send, code, query.get("lang") == code) if is_get else send)
