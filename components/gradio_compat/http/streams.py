"""Streams of messages that stay open between a page's calls, and end so that no call is lost.

Gradio ends a session's stream as soon as the last of its calls has been answered. A call that the server accepts after
that, but whose acceptance reaches the page before the end of the stream does, is never answered: the page takes its
stream for an open one. With up to 0.1 s between the arrivals of two answers a fifth of overlapping calls are lost.

Here a stream goes on for `STREAM_IDLE_SECONDS` after the last answer, which also saves the page a request per call.
Then the page is told to close it, and does; until it has, no call of its session is accepted.

Tried with gradio 6.30 and 6.31. Test: `tests/page/gradio_compat/test_queue.py`.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextlib import suppress

from starlette.datastructures import QueryParams
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from ... import limits
from .mailbox import Mailbox
from .routes import MESSAGES

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
        with mailbox.streaming():
            while await self._is_continued(scope, receive, stream, mailbox):
                pass
        await send({"type": "http.response.body", "body": b"", "more_body": False})

    async def _is_continued(self, scope: Scope, receive: Receive, stream: _Stream, mailbox: Mailbox) -> bool:
        """Send the answers to a session's calls, and wait for more; whether there are more, else the page is told."""
        stream.end = None
        await self._app({**scope}, receive, stream.send)  # routes write into the scope
        if stream.end is None:  # the page has left, or the server is stopping
            return False
        left = asyncio.create_task(_disconnected(receive))
        try:
            if await mailbox.called_before(left, limits.STREAM_IDLE_SECONDS):
                return True
            if not left.done():
                with mailbox.closing(), suppress(TimeoutError):
                    async with asyncio.timeout(limits.STREAM_CLOSING_SECONDS):
                        await stream.send_end()
                        await left
        finally:
            left.cancel()
        return False


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

    async def send_end(self) -> None:
        """Tell the page to close the stream."""
        await self._send({"type": "http.response.body", "body": self.end, "more_body": True})


async def _disconnected(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
