"""Who is answered in which language: the address bar says (`?lang=de`), else the browser does.

Gradio builds a page once. Here its configuration is told anew in each language: whatever in it is `Words`.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from starlette.datastructures import Headers, QueryParams
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from components.i18n.language import ENGLISH, asked_for, language, speaking, spoken


def told(value: Any) -> Any:
    """A copy of plain lists and dictionaries with all `Words` in them in the language of the moment."""
    if isinstance(value, str):
        return spoken(value)
    if isinstance(value, Mapping):
        return {key: told(inside) for key, inside in value.items()}
    if isinstance(value, list | tuple):
        return [told(inside) for inside in value]
    return value


class Translated:
    """A page's configuration in every language, made when the first visitor wants it."""

    def __init__(self, config: dict[str, Any]) -> None:
        self._made = {ENGLISH: config}

    def now(self) -> dict[str, Any]:
        """In the language of the moment. Gradio copies what it changes of it."""
        if language() not in self._made:
            self._made[language()] = told(self._made[ENGLISH])
        return self._made[language()]


class InTheirLanguage:
    """ASGI middleware: requests are answered in their language, and the page itself knows which that is."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Hand the request on."""
        if scope["type"] != "http":
            return await self._app(scope, receive, send)
        query = QueryParams(scope.get("query_string", b""))
        code = asked_for(query, Headers(scope=scope).get("accept-language"))
        with speaking(code):
            is_page = scope["method"] == "GET"
            await self._app(scope, receive, _marking(send, code, query.get("lang") == code) if is_page else send)


def _marking(send: Send, code: str, is_asked: bool) -> Send:
    """Gradio's own words follow the browser's language: an HTML page comes with what makes it say `code`."""
    start: Message | None = None
    body = b""

    async def marked(message: Message) -> None:
        nonlocal start, body
        if message["type"] == "http.response.start":
            is_page = Headers(raw=message["headers"]).get("content-type", "").startswith("text/html")
            start = message if is_page else None
            if not is_page:
                await send(message)
            return
        if start is None:
            return await send(message)
        body += message.get("body", b"")
        if message.get("more_body"):
            return
        script = f'document.documentElement.lang = "{code}";'
        if is_asked or code != ENGLISH:
            for name, value in (("language", code), ("languages", [code])):
                script += f'Object.defineProperty(navigator, "{name}", {{ get: () => {json.dumps(value)} }});'
        body = body.replace(b"<head>", f"<head><script>{script}</script>".encode(), 1)
        headers = [pair for pair in start["headers"] if pair[0].lower() != b"content-length"]
        headers += [(b"content-length", str(len(body)).encode()), (b"vary", b"accept-language")]
        await send({**start, "headers": headers})
        await send({"type": "http.response.body", "body": body})

    return marked
