"""Gradio's own texts in the page's language.

Gradio's page takes its texts ("Drop File Here") in the browser's language, `navigator.language`, and no setting of the
server's changes that. So an HTML page comes with a script that answers with the page's language instead.

Tried with gradio 6.30 and 6.31. Test: `tests/browser/test_browser_gradio.py`.
"""

from __future__ import annotations

import json

from starlette.datastructures import Headers
from starlette.types import Message, Send

from ...i18n.language import ENGLISH


def mark_language(send: Send, code: str, is_asked: bool) -> Send:
    """An ASGI `send` that adds the script to an HTML page, and hands on everything else as it is.

    Args:
        send: to the client.
        code: the page's language, such as "de".
        is_asked: whether the address names the language, which then also replaces a browser's English variant.
    """
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
