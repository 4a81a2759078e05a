"""By which names a page on loopback is called, since it opens any path for whoever uses it.

A site whose name comes to mean this machine (DNS rebinding) could use it through the browser of its owner, but its name
stays in the Host header. What another site sends without reading the answer, the browser marks as cross-site.
"""

from __future__ import annotations

import ipaddress
import os
import re
from collections.abc import Callable

from starlette.datastructures import Headers
from starlette.responses import PlainTextResponse
from starlette.types import ASGIApp, Receive, Scope, Send

from intraslice.core import checks

VARIABLE = "INTRASLICE_HOSTS"
AROUND = re.compile(r"^https?://|(:\d*)?/?$")  # a name: scheme and port


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
        headers, problem = Headers(raw=scope.get("headers", ())), ""
        name = AROUND.sub("", (host := headers.get("host", "")).lower())
        listed = f"{os.environ.get(VARIABLE, '')} {self._share_url() or ''}".lower().split()
        if not is_loopback(name) and name not in (AROUND.sub("", address) for address in listed):
            problem = f"Host must be localhost, a loopback address or a name in {VARIABLE}, got {checks.quoted(host)}."
            problem += " If this page is yours, add the name there and start it again."
        elif scope.get("method") == "POST" and headers.get("sec-fetch-site") == "cross-site":
            problem = "A page of another site must not send anything to this one."
        if problem and scope["type"] != "lifespan":
            return await PlainTextResponse(problem, 403)(scope, receive, send)
        return await self._app(scope, receive, send)
