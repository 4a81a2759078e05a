"""By which names a page on loopback may be called, and by whom.

It opens any path for its user. Another site whose name comes to mean this machine (DNS rebinding) could use it through
the user's browser as its own; its name then stays in the Host header. What another site sends without reading the
answer, the browser marks as such.
"""

from __future__ import annotations

import ipaddress
import os
from collections.abc import Callable
from urllib.parse import urlsplit

from starlette.datastructures import Headers
from starlette.responses import PlainTextResponse
from starlette.types import ASGIApp, Receive, Scope, Send

from ..jobs import limits

VARIABLE = "INTRASLICE_HOSTS"


def is_loopback(host: str) -> bool:
    """Whether a name or an address means this machine alone."""
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return host == "localhost"


class KnownHosts:
    """ASGI middleware: answers requests for loopback, the names in `INTRASLICE_HOSTS`, and gradio's `share_url()`."""

    def __init__(self, app: ASGIApp, share_url: Callable[[], str | None]) -> None:
        self._app, self._share_url = app, share_url

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Hand the request on, or refuse it."""
        headers, problem = Headers(raw=scope.get("headers", [])), ""
        name = _name(host := headers.get("host", ""))
        known = (*os.environ.get(VARIABLE, "").lower().split(), _name(self._share_url() or ""))
        if not is_loopback(name) and (not name or name not in known):
            problem = f"Host must be localhost, a loopback address or one of {VARIABLE}, got {limits.shown(host)}."
            problem += f" If this page is yours, add the name to {VARIABLE} and start it again."
        elif scope.get("method") == "POST" and headers.get("sec-fetch-site") == "cross-site":
            problem = "A page of another site must not send anything to this one. Open it by its own address."
        if problem and scope["type"] != "lifespan":
            return await PlainTextResponse(problem, 403)(scope, receive, send)
        return await self._app(scope, receive, send)


def _name(address: str) -> str:
    """The host of an address or a Host header, without its port; "" where it has none."""
    try:
        return urlsplit(address if "//" in address else f"//{address}").hostname or ""
    except ValueError:
        return ""
