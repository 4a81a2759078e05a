"""The messages of each session, and who reads them.

Gradio has a queue of messages for each session, deletes it with the stream that reads it, and does not tell whether
there is one, nor whether a stream is about to end.

Tried with gradio 6.30 and 6.31. Test: `tests/page/gradio_compat/test_queue.py`.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from typing import Any


class Mailbox(asyncio.Queue[Any]):
    """A session's messages, and whether somebody reads them."""

    def __init__(self, on_read: Callable[[], None]) -> None:
        super().__init__()
        self.readers, self._on_read = 0, on_read
        self.calls_coming = 0  # that wait to be accepted
        self._streams = 0  # that are open
        self._called, self._is_open = asyncio.Event(), asyncio.Event()
        self._is_open.set()
        self.touch()

    def touch(self) -> None:
        """Somebody is there: the session has just called, or read."""
        self._last_seen = time.monotonic()

    async def put(self, message: Any) -> None:
        """Add a sign of life, for a reader who waits; all other messages come by `put_nowait`."""
        if self.readers:
            self.put_nowait(message)

    async def get(self) -> Any:
        """The next message, once there is one."""
        self.readers += 1
        self._on_read()
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
            await self._is_open.wait()
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
            is_called = called.done()
            called.cancel()
            if left.done() or not (is_called or self.calls_coming):
                return False
        return True

    @property
    def is_watched(self) -> bool:
        """Whether there is a reader, or a stream that will read the next call's messages."""
        return bool(self.readers or self._streams)

    @contextmanager
    def streaming(self) -> Iterator[None]:
        """A context in which a stream of the session is open."""
        self._streams += 1
        try:
            yield
        finally:
            self._streams -= 1

    @contextmanager
    def closing(self) -> Iterator[None]:
        """A context in which no call of the session is accepted: its page is told to close the stream."""
        self._is_open.clear()
        try:
            yield
        finally:
            self._is_open.set()

    def unread(self) -> float:
        """Seconds since the last reader left or the session called; 0.0 while there is a reader."""
        return 0.0 if self.readers else time.monotonic() - self._last_seen


class Mailboxes(dict[str, Mailbox]):
    """Mailboxes by session. Whatever gradio sets as a value becomes a `Mailbox`."""

    def __init__(self, on_read: Callable[[str], None]) -> None:
        super().__init__()
        self._on_read = on_read

    def __setitem__(self, session: str, _: object) -> None:
        super().__setitem__(session, Mailbox(lambda: self._on_read(session)))

    def __delitem__(self, session: str) -> None:
        """Nothing: gradio deletes a mailbox when its reader leaves, and `SteadyQueue.tidy` when no other comes."""
