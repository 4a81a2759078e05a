"""Streams of messages that stay open between a page's calls, and end so that no call is lost.

Gradio ends a session's stream as soon as the last of its calls has been answered. A call that the server accepts after
that, but whose acceptance reaches the page before the end of the stream does, is never answered: the page takes its
stream for an open one. With up to 0.1 s between the arrivals of two answers a fifth of overlapping calls are lost.

Here a stream goes on for `IDLE` seconds after the last answer, which also saves the page a request for each call. Then
the page is told to close it, and does; until it has, no call of its session is accepted.

Tried with gradio 6.30 and 6.31. Test: `tests/page/gradio_compat/http/test_streams.py`.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from starlette.datastructures import QueryParams
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from .mailbox import Mailbox
from .routes import MESSAGES

IDLE = 1.0  # seconds without a call after which a stream is closed
CLOSING = 1.0  # seconds that the page has to close it
CLOSE = b'"msg":"close_stream"'


class OpenStreams:
    """ASGI middleware: ends a session's stream when the session is idle, not when its calls are answered.

    Args:
        mailbox_of: the messages of a session, or None of one that has called nothing.
    """

    def __init__(self, app: ASGIApp, mailbox_of: Callable[[str], Mailbox | None]) -> None:
        self._app, self._mailbox_of = app, mailbox_of

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Hand the request on; a stream again and again, until its page has left or closed it."""
        mailbox = None
        if scope["type"] == "http" and scope["path"] == MESSAGES:
            mailbox = self._mailbox_of(QueryParams(scope["query_string"]).get("session_hash", ""))
        if mailbox is None:
            return await self._app(scope, receive, send)
        stream = _Stream(send)
        while True:
            await self._app({**scope}, receive, stream.send)  # routes write into it
            if stream.end is None:  # the page has left, or the server is stopping
                break
            left = asyncio.create_task(_disconnected(receive))
            try:
                if await mailbox.called_before(left, IDLE):
                    stream.end = None
                    continue
                if not left.done():
                    with mailbox.closing():
                        await send({"type": "http.response.body", "body": stream.end, "more_body": True})
                        await asyncio.wait([left], timeout=CLOSING)
            finally:
                left.cancel()
            break
        await send({"type": "http.response.body", "body": b"", "more_body": False})


class _Stream:
    """What is sent to the page: one beginning, and all messages but gradio's last, which is kept in `end`."""

    def __init__(self, send: Send) -> None:
        self._send, self._has_begun = send, False
        self.end: bytes | None = None

    async def send(self, message: Message) -> None:
        if message["type"] != "http.response.body":
            if not self._has_begun:
                await self._send(message)
            self._has_begun = True
        elif CLOSE in message.get("body", b""):
            self.end = message["body"]
        elif message.get("body"):
            await self._send({**message, "more_body": True})


async def _disconnected(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
