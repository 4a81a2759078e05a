"""Who sends a request or calls a handler: from which address, as which client, and whether it is still connected.

- Gradio only has the address of the connection, which may be a proxy's. That appends the address of its peer to
  `X-Forwarded-For`; what stands left of it was written by the client and may be false (`limits.trusted_hops`).
- When a client leaves, gradio marks its event, and tells neither a handler that runs nor its job. So the mark is read
  off gradio's queue.
- Gradio's MCP server passes each queued call on to itself through an HTTP client of its own, with the request's
  headers: all calls come from this machine, in one session, and a job goes on when its MCP client has gone.
  `mcp_callers` gives every request to the MCP server a secret number, in a header that gradio's client repeats.
- Gradio's MCP server describes all tools anew for each request, which stops the event loop for 50 ms; and each of the
  first calls makes a client, which reads the page's whole configuration.

Tried with gradio 6.30 and 6.31. Test: `tests/page/gradio_compat/test_callers.py`.
"""

import functools
import ipaddress
import logging
import secrets
import threading
from collections.abc import Callable
from typing import Any

import gradio as gr
from gradio.context import LocalContext
from starlette.requests import Request
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from .. import limits
from ..jobs.job import Caller

log = logging.getLogger(__name__)

NETWORK = 64  # bits of an IPv6 address that name a subscriber, who has all addresses below
SITE = 48  # bits that name a site, which may have all networks below
MCP, MCP_HEADER = "/gradio_api/mcp", "x-intraslice-mcp"
_connected: dict[str, Caller] = {}  # MCP requests that are being answered, by their numbers


def address_of(request: Any) -> str:
    """The address of the client of starlette's or gradio's request, IPv6 by its network; "" where that is hidden."""
    if request is None or request.client is None:
        return ""
    forwarded, hops = request.headers.get("x-forwarded-for", ""), limits.trusted_hops()
    if not hops:
        if forwarded and limits.hosted() and not _parsed(request.client.host, require_global=True):
            _warn_once()
            return ""
        return _parsed(request.client.host)
    entries = forwarded.split(",")
    addresses = [_parsed(entry, require_global=True) for entry in entries[: len(entries) - (hops - 1)]]
    return next(filter(None, reversed(addresses)), "")


def site_of(request: Any) -> str:
    """As `address_of`, but IPv6 by its site: a client with its 65,536 networks counts once."""
    address = address_of(request)
    return str(ipaddress.ip_network(address).supernet(new_prefix=SITE)) if ":" in address else address


def current_caller() -> Caller:
    """A handler's caller, whose `is_connected` any thread may call; always connected without a queued event."""
    request: Any = LocalContext.request.get(None)
    if (caller := mcp_caller(request)) is not None:
        return caller
    page, event_id = LocalContext.blocks.get(None), LocalContext.event_id.get(None)
    event = page._queue.event_ids_to_events.get(event_id) if page is not None and event_id is not None else None
    address = address_of(request) if isinstance(request, gr.Request) else ""
    return Caller(address, lambda: event.alive) if event is not None else Caller(address)


def client_of(request: gr.Request | str | None) -> str:
    """The kind of client that calls, and an open page's session, named by its client; of other programs the address."""
    if isinstance(request, str):
        return request
    if (caller := mcp_caller(request)) is not None:
        return f"mcp {caller.address}"
    if session := getattr(request, "session_hash", None):
        return f"session {session}"
    return f"program {address_of(request) if isinstance(request, gr.Request) else ''}".strip()


def mcp_caller(request: Any) -> Caller | None:
    """The MCP client behind a request of gradio's own client; one that has gone is not connected. None for others."""
    number = getattr(request, "headers", {}).get(MCP_HEADER)
    return None if number is None else _connected.get(number, Caller("", lambda: False))


def mcp_callers(app: ASGIApp) -> ASGIApp:
    """ASGI middleware: notes every request to the MCP server until its client has gone or has its answer."""

    async def answer(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or not scope["path"].startswith(MCP):
            return await app(scope, receive, send)
        number = secrets.token_hex(16)
        _connected[number] = Caller(address_of(Request(scope)), lambda: number in _connected)
        headers = [pair for pair in scope["headers"] if pair[0] != MCP_HEADER.encode()]
        headers.append((MCP_HEADER.encode(), number.encode()))

        async def receive_until_disconnect() -> Message:
            message = await receive()
            if message["type"] == "http.disconnect":
                _connected.pop(number, None)
            return message

        try:
            await app({**scope, "headers": headers}, receive_until_disconnect, send)
        finally:
            _connected.pop(number, None)

    return answer


def prepare_mcp(server: Any) -> None:
    """Let gradio's MCP server keep description and schema of each tool, made now, and one client for all calls."""
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

    def described(*values: Any) -> Any:
        key = tuple(value if isinstance(value, str) else value is None for value in values)
        if key not in kept:
            kept[key] = describe(*values)
        return kept[key]

    return described


def _parsed(text: str, require_global: bool = False) -> str:
    try:
        address = ipaddress.ip_address(text.strip().strip("[]"))
    except ValueError:
        return ""
    if require_global and not address.is_global:
        return ""
    if isinstance(address, ipaddress.IPv6Address):
        if address.ipv4_mapped is not None:
            return str(address.ipv4_mapped)
        return str(ipaddress.ip_network((address, NETWORK), strict=False))
    return str(address)


@functools.cache
def _warn_once() -> None:
    log.warning("requests come through a proxy, so clients are limited by session alone; set %s", limits.HOPS_VARIABLE)
