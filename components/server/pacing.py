"""The pace of calls: those of one network address begin one after the other.

A call takes the event loop some milliseconds, and a slider move waits for whatever has come before it: of sixty calls
that arrive at once for a third of a second. One after the other, they leave turns to others.
"""

from __future__ import annotations

import asyncio

from starlette.requests import Request
from starlette.types import ASGIApp, Receive, Scope, Send

from .. import limits
from ..gradio_compat.http.addresses import address_of
from ..gradio_compat.http.routes import API

PACED = tuple(f"{API}/{way}" for way in ("call/", "queue/join", "mcp"))  # not `run/`, which answers the slider


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
        begin = min(max(now, self._next.get(address, now)), now + limits.MAX_CALL_PAUSE_SECONDS)
        self._next[address] = begin + limits.CALL_PAUSE_SECONDS
        if len(self._next) > limits.MAX_PACED_ADDRESSES:
            self._next = {one: free for one, free in self._next.items() if free > now}
        return begin - now
