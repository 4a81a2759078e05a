"""The language of each response: from the address (`?lang=de`), or else from the browser's `Accept-Language`."""

from __future__ import annotations

from starlette.datastructures import Headers, QueryParams
from starlette.types import ASGIApp, Receive, Scope, Send

from ..gradio_compat.browser.language import mark_language
from ..i18n.language import requested_language, use_language


class LanguageMiddleware:
    """ASGI middleware that sets the language of each request, and marks HTML pages with it."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass the request on in its language."""
        if scope["type"] != "http":
            return await self._app(scope, receive, send)
        query = QueryParams(scope.get("query_string", b""))
        code = requested_language(query, Headers(scope=scope).get("accept-language"))
        with use_language(code):
            is_get = scope["method"] == "GET"
            await self._app(scope, receive, mark_language(send, code, query.get("lang") == code) if is_get else send)
