"""What each request passes: who may send it, in which language it is answered, and how soon."""

import asyncio
import ipaddress
import os
import re
from collections.abc import Callable

from starlette.datastructures import Headers, QueryParams
from starlette.requests import Request
from starlette.responses import PlainTextResponse
from starlette.types import ASGIApp, Receive, Scope, Send

from intraslice.core import checks

from .. import limits
from ..gradio_compat.callers import address_of
from ..gradio_compat.requests import API
from ..i18n.language import requested_language, use_language

HOSTS_VARIABLE = "INTRASLICE_HOSTS"
AROUND = re.compile(r"^https?://|(:\d*)?/?$")  # a name: scheme and port
PACED = tuple(f"{API}/{way}" for way in ("call/", "queue/join", "mcp"))  # not `run/`, which answers the slider


def is_loopback(host: str) -> bool:
    """Whether a name or an address means this machine alone."""
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return host == "localhost"


def known_hosts(app: ASGIApp, share_url: Callable[[], str | None]) -> ASGIApp:
    """ASGI middleware: answers requests for loopback, the names in `INTRASLICE_HOSTS`, and gradio's `share_url()`.

    A page on loopback opens any path for its user. A site whose name comes to mean this machine (DNS rebinding) could
    use it through the user's browser, but its name stays in the Host header. What another site sends without reading
    the answer, the browser marks as cross-site.
    """

    async def answer(scope: Scope, receive: Receive, send: Send) -> None:
        headers, problem = Headers(raw=scope.get("headers", ())), ""
        name = AROUND.sub("", (host := headers.get("host", "")).lower())
        listed = f"{os.environ.get(HOSTS_VARIABLE, '')} {share_url() or ''}".lower().split()
        if not is_loopback(name) and name not in (AROUND.sub("", address) for address in listed):
            problem = f"Host must be localhost, a loopback address or a name in {HOSTS_VARIABLE}, "
            problem += f"got {checks.quoted(host)}. If this page is yours, add the name there and start it again."
        elif scope.get("method") == "POST" and headers.get("sec-fetch-site") == "cross-site":
            problem = "A page of another site must not send anything to this one."
        is_refused = problem and scope["type"] != "lifespan"
        await (PlainTextResponse(problem, 403) if is_refused else app)(scope, receive, send)

    return answer


def in_language(app: ASGIApp) -> ASGIApp:
    """ASGI middleware: a request's language is that of its address (`?lang=de`), else that of `Accept-Language`."""

    async def answer(scope: Scope, receive: Receive, send: Send) -> None:
        query = QueryParams(scope.get("query_string", b""))
        with use_language(requested_language(query, Headers(raw=scope.get("headers", ())).get("accept-language"))):
            await app(scope, receive, send)

    return answer


class Pacing:
    """ASGI middleware: calls of one network address begin one after the other.

    A call takes the event loop some milliseconds: sixty at once would stop a slider for a third of a second.
    """

    def __init__(self, app: ASGIApp) -> None:
        self._app = app
        self._next: dict[str, float] = {}  # the earliest beginning of an address's next call

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and scope["method"] == "POST" and scope["path"].startswith(PACED):
            address, now = address_of(Request(scope)), asyncio.get_running_loop().time()
            begin = min(max(now, self._next.get(address, now)), now + limits.MAX_CALL_PAUSE_SECONDS)
            self._next[address] = begin + limits.CALL_PAUSE_SECONDS
            if len(self._next) > limits.MAX_PACED_ADDRESSES:
                self._next = {other: free for other, free in self._next.items() if free > now}
            await asyncio.sleep(begin - now)
        return await self._app(scope, receive, send)
