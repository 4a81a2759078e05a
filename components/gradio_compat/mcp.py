"""The clients of MCP calls, and the tools' descriptions, which are cached.

Gradio's MCP server passes each queued call on to itself through an HTTP client of its own, with the request's headers.
So all calls come from this machine, in a session of gradio's, and a job goes on when its MCP client has gone. This
middleware gives every request to the MCP server a secret number, in a header that gradio's client repeats. And the
server describes all tools anew for each request, which stops the event loop, and so the whole page, for 50 ms.

Tried with gradio 6.30 and 6.31. Test: `tests/page/gradio_compat/test_callers.py`.
"""

from __future__ import annotations

import functools
import secrets
import threading
from collections.abc import Callable
from typing import Any

from starlette.requests import Request
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from ..jobs.job import Caller
from .addresses import address_of

PATH = "/gradio_api/mcp"
HEADER = "x-intraslice-mcp"
_connected: dict[str, Caller] = {}  # MCP requests that are being answered, by their numbers


class McpCallers:
    """ASGI middleware: notes every request to the MCP server until its client has gone or has its answer."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Hand the request on."""
        if scope["type"] != "http" or not scope["path"].startswith(PATH):
            return await self._app(scope, receive, send)
        number = secrets.token_hex(16)
        address = address_of(Request(scope))
        _connected[number] = Caller(address, lambda: number in _connected)
        headers = [pair for pair in scope["headers"] if pair[0] != HEADER.encode()]

        async def receive_until_disconnect() -> Message:
            message = await receive()
            if message["type"] == "http.disconnect":
                _connected.pop(number, None)
            return message

        try:
            await self._app(
                {**scope, "headers": [*headers, (HEADER.encode(), number.encode())]}, receive_until_disconnect, send
            )
        finally:
            _connected.pop(number, None)


def prepare_mcp(server: Any) -> None:
    """Let gradio's MCP server keep the description and the schema of each tool, made now, and one client for all calls.

    Otherwise each list of tools is made in the event loop, and each of the first calls reads the whole configuration.
    """
    for name in ("get_fn_description", "get_input_schema"):
        setattr(server, name, _kept_by_tool(getattr(server, name)))
    for tool, endpoint in server.tool_to_endpoint.items():
        if (function := server.get_block_fn_from_endpoint_name(endpoint)) is not None and function.fn is not None:
            _, parameters = server.get_fn_description(function, tool)
            server.get_input_schema(tool, parameters)
    make_client, lock = server._get_or_create_client, threading.Lock()

    def one_client() -> Any:
        with lock:
            return make_client()

    server._get_or_create_client = one_client


def _kept_by_tool(describe: Callable[..., Any]) -> Callable[..., Any]:
    kept: dict[tuple[str | bool, ...], Any] = {}

    @functools.wraps(describe)
    def described(*values: Any) -> Any:
        key = tuple(value if isinstance(value, str) else value is None for value in values)
        if key not in kept:
            kept[key] = describe(*values)
        return kept[key]

    return described


def mcp_caller(request: Any) -> Caller | None:
    """The MCP client behind a request of gradio's own client; one that has gone is not connected. None for others."""
    number = request.headers.get(HEADER) if request is not None and hasattr(request, "headers") else None
    if number is None:
        return None
    return _connected.get(number, Caller("", lambda: False))
