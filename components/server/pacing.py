"""The pace of calls: those of one network address begin one after the other.

A call takes the event loop some milliseconds, and a slider move waits for whatever has come before it: of sixty calls
that arrive at once for a third of a second. One after the other, they leave turns to others.
"""

from __future__ import annotations

import asyncio

from starlette.requests import Request
from starlette.types import ASGIApp, Receive, Scope, Send

from ..gradio_compat.addresses import address_of
from ..gradio_compat.requests import API

PACED = tuple(f"{API}/{way}" for way in ("call/", "queue/join", "mcp"))  # not `run/`, which answers the slider
PAUSE = 0.02  # seconds between the beginnings of two calls of an address
MAX_WAIT = 2.0  # seconds; a class of a hundred may be behind one address
MAX_ADDRESSES = 1_000  # that are remembered; then those are forgotten whose calls have all begun


class Pacing:
    """ASGI middleware: delays a call of an address that has just begun another."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app
        self._next: dict[str, float] = {}  # the earliest beginning of an address's next call

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Hand the request on in time."""
        if scope["type"] == "http" and scope["method"] == "POST" and scope["path"].startswith(PACED):
            await asyncio.sleep(self._wait(address_of(Request(scope)), asyncio.get_running_loop().time()))
        return await self._app(scope, receive, send)

    def _wait(self, address: str, now: float) -> float:
        """Seconds until a call may begin, which takes its place."""
        begin = min(max(now, self._next.get(address, now)), now + MAX_WAIT)
        self._next[address] = begin + PAUSE
        if len(self._next) > MAX_ADDRESSES:
            self._next = {one: free for one, free in self._next.items() if free > now}
        return begin - now
