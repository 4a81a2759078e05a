"""Gradio's own words in the page's language."""

from __future__ import annotations

import json

from starlette.datastructures import Headers
from starlette.types import Message, Send

from components.i18n.language import ENGLISH


def mark_language(send: Send, code: str, is_asked: bool) -> Send:
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
