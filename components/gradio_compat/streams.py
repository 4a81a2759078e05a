"""The messages of each session, and streams of them that stay open between a page's calls.

Gradio ends a session's stream as soon as the last of its calls has been answered. A call whose acceptance reaches the
page before the end of the stream does is never answered, since the page takes its stream for an open one. With up to
0.1 s between the arrivals of two answers a fifth of overlapping calls are lost.

Here a stream goes on for `STREAM_IDLE_SECONDS` after the last answer. Then the page is told to close it; until it has,
no call of its session is accepted. A session's messages remain until `SteadyQueue.tidy` deletes them. Streams are not
cached: Chromium may else request one twice and read one of the two, while each gets some of the messages.

Tried with gradio 6.30 and 6.31. Test: `tests/page/gradio_compat/test_queue.py`.
"""

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from typing import Any

from starlette.datastructures import QueryParams
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from .. import limits
from .requests import MESSAGES

CLOSE = b'"msg":"close_stream"'


class Mailbox(asyncio.Queue[Any]):
    """A session's messages."""

    def __init__(self) -> None:
        super().__init__()
        self.readers = self.streams = 0  # streams that wait for a message now; that are open
        self.calls_coming = 0  # calls that wait to be accepted: while the page is told to close its stream
        self.is_open, self._called = asyncio.Event(), asyncio.Event()
        self.is_open.set()
        self.touch()

    def touch(self) -> None:
        """Note that the session has just called, or read."""
        self._last_seen = time.monotonic()

    def unread(self) -> float:
        """Seconds since the last reader left or the session called; 0.0 while there is a reader."""
        return 0.0 if self.readers else time.monotonic() - self._last_seen

    async def put(self, message: Any) -> None:
        """Add a sign of life, for a reader who waits; all other messages come by `put_nowait`."""
        if self.readers:
            self.put_nowait(message)

    async def get(self) -> Any:
        """The next message, once there is one."""
        self.readers += 1
        try:
            return await super().get()
        finally:
            self.readers -= 1
            self.touch()

    @asynccontextmanager
    async def calling(self) -> AsyncIterator[None]:
        """A context in which a call of the session is accepted, once no stream of the session is being closed."""
        self.calls_coming += 1
        try:
            await self.is_open.wait()
            yield
        finally:
            self.calls_coming -= 1
            self._called.set()

    async def called_before(self, left: asyncio.Task[Any], seconds: float) -> bool:
        """Whether messages come, as of every accepted call, within some seconds and before the page has `left`."""
        while self.empty():
            self._called.clear()
            called = asyncio.create_task(self._called.wait())
            await asyncio.wait({called, left}, timeout=seconds, return_when=asyncio.FIRST_COMPLETED)
            called.cancel()
            if left.done() or not (self._called.is_set() or self.calls_coming):  # `called` itself ends a moment later
                return False
        return True


class Mailboxes(dict[str, Mailbox]):
    """Mailboxes by session. Gradio sets queues as values, each of which becomes a `Mailbox`."""

    def __setitem__(self, session: str, _: object) -> None:
        super().__setitem__(session, Mailbox())

    def __delitem__(self, session: str) -> None:
        """Nothing: gradio deletes a mailbox when its reader leaves."""


def open_streams(app: ASGIApp, mailbox_of: Callable[[str], Mailbox | None]) -> ASGIApp:
    """ASGI middleware: ends a stream when its session is idle, not when its calls are answered, by its mailbox."""

    async def answer(scope: Scope, receive: Receive, send: Send) -> None:
        mailbox, has_begun, end = None, False, b""
        if scope["type"] == "http" and scope["path"] == MESSAGES:
            mailbox = mailbox_of(QueryParams(scope["query_string"]).get("session_hash", ""))
        if mailbox is None:
            return await app(scope, receive, send)

        async def send_on(message: Message) -> None:
            """Send one beginning, and all messages but gradio's last, which is kept as `end`."""
            nonlocal has_begun, end
            if message["type"] != "http.response.body":
                if not has_begun:
                    await send({**message, "headers": [*message["headers"], (b"cache-control", b"no-store")]})
                has_begun = True
            elif CLOSE in message.get("body", b""):
                end = message["body"]
            elif message.get("body"):
                await send({**message, "more_body": True})

        mailbox.streams += 1
        try:
            is_idle = False
            while not is_idle:
                end = b""
                await app({**scope}, receive, send_on)  # routes write into the scope
                if not end:  # the page has left, or the server is stopping
                    break
                left = asyncio.create_task(_disconnected(receive))
                try:
                    is_idle = not await mailbox.called_before(left, limits.STREAM_IDLE_SECONDS)
                    if is_idle and not left.done():
                        mailbox.is_open.clear()
                        with suppress(TimeoutError):
                            async with asyncio.timeout(limits.STREAM_CLOSING_SECONDS):
                                await send({"type": "http.response.body", "body": end, "more_body": True})
                                await left
                finally:
                    mailbox.is_open.set()
                    left.cancel()
        finally:
            mailbox.streams -= 1
        await send({"type": "http.response.body", "body": b"", "more_body": False})

    return answer


async def _disconnected(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
