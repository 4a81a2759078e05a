"""The page's HTML, configuration and list of endpoints, rendered once for each language.

Gradio renders them for every request, with a copy of the whole configuration, which blocks the event loop; and it
buffers a megabyte for every slow client. Only the root address in them differs from request to request, since gradio
takes it from the request's headers. So they are rendered once with a placeholder address, which each answer replaces;
the compressed result of the last address is kept.

Tried with gradio 6.30 and 6.31. Test: `tests/page/gradio_compat/test_page_config.py`.
"""

from __future__ import annotations

import asyncio
import gzip
import hashlib
import re
import zlib
from collections.abc import AsyncIterator, Mapping
from typing import NamedTuple
from weakref import WeakValueDictionary

import httpx
from gradio.route_utils import get_request_origin
from starlette.datastructures import QueryParams
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response, StreamingResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from ... import limits
from ...i18n.language import gettext, requested_language
from .addresses import address_of

INFO = "/gradio_api/info"  # what a program reads of all endpoints; encoding it takes the event loop a third of a second
PATHS = ("/", "/config", INFO)
VARIANTS = {"serialize": "False", "all_endpoints": "True"}  # of INFO: queries of gradio's clients
NOWHERE = "isx-root.invalid"  # a name that no machine can have (RFC 6761)
ORIGIN = re.compile(r"https?://[\w.:\[\]-]+", re.ASCII)  # nothing that ends a string in JSON or HTML
# What of a request is answered here, and therefore kept from gradio.
OURS = {b"host", b"x-forwarded-host", b"x-forwarded-proto", b"x-gradio-server", b"if-none-match", b"accept-encoding"}
SENT = 32  # answers as they were sent
CHUNK = 2**16  # bytes


def origin_of(request: Request) -> str:
    """Scheme and host by which the client sees the page, as gradio reads them; empty where they are none."""
    try:
        url = get_request_origin(request, request.url.path)
    except (httpx.InvalidURL, ValueError):
        return ""
    return f"{url.scheme}://{url.netloc.decode('latin-1')}"


async def in_chunks(body: bytes) -> AsyncIterator[bytes]:
    """The body in parts: of a client who does not read, one part waits and not all of it."""
    for start in range(0, len(body), CHUNK):
        yield body[start : start + CHUNK]


class Rendered(NamedTuple):
    """An answer of gradio's, and a name for its content."""

    body: bytes
    media_type: str
    version: str


class CachedPage:
    """ASGI middleware: answers `GET` of the page and of its configuration from memory, with an ETag.

    Args:
        headers: of these answers.
    """

    def __init__(self, app: ASGIApp, headers: Mapping[str, str] | None = None) -> None:
        self._app, self._headers = app, dict(headers or {})
        self._rendered: dict[tuple[str, str, str], Rendered] = {}
        self._sent: dict[tuple[str, str, bool], bytes] = {}  # the one that was used last comes last
        self._making = asyncio.Lock()
        self._pace: WeakValueDictionary[str, asyncio.Lock] = WeakValueDictionary()  # by network address

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer the request, or hand it on."""
        if scope["type"] != "http" or scope["method"] != "GET" or scope["path"] not in PATHS:
            return await self._app(scope, receive, send)
        request = Request(scope)
        if not ORIGIN.fullmatch(origin := origin_of(request)):
            words = gettext("The request's Host header is not a valid host name.")
            return await PlainTextResponse(words, 400)(scope, receive, send)
        query = QueryParams(scope.get("query_string", b""))
        language = requested_language(query, request.headers.get("accept-language"))
        parts = [f"lang={language}"] if query.get("lang") == language else []
        if scope["path"] == INFO:
            parts += [f"{name}={value}" for name, value in VARIANTS.items() if query.get(name) == value]
        rendered = await self._answer(scope, receive, language, "&".join(parts))
        if rendered is None:
            return await self._app(scope, receive, send)
        etag = f'"{rendered.version}-{zlib.crc32(origin.encode()):x}"'
        headers = self._headers | {"etag": etag, "cache-control": "no-cache"}
        headers["vary"] = "accept-language, accept-encoding"
        if request.headers.get("if-none-match") == etag:
            return await Response(status_code=304, headers=headers)(scope, receive, send)
        zipped = "gzip" in request.headers.get("accept-encoding", "")
        headers |= {"content-encoding": "gzip"} if zipped else {}
        body = self._as_sent(rendered, origin, zipped)
        headers["content-length"] = str(len(body))
        response = StreamingResponse(in_chunks(body), headers=headers, media_type=rendered.media_type)
        if address := address_of(request):  # else it may be that of all clients behind a proxy
            async with self._pace.setdefault(address, asyncio.Lock()):  # not while sending: a client may never read
                await asyncio.sleep(len(body) / limits.PAGE_BYTES_PER_SECOND)
        await response(scope, receive, send)

    def _as_sent(self, rendered: Rendered, origin: str, zipped: bool) -> bytes:
        key = (rendered.version, origin, zipped)
        if (body := self._sent.pop(key, None)) is None:
            body = rendered.body.replace(f"http://{NOWHERE}".encode(), origin.encode())
            body = gzip.compress(body, 1, mtime=0) if zipped else body
        self._sent[key] = body
        while len(self._sent) > SENT:
            del self._sent[next(iter(self._sent))]
        return body

    async def _answer(self, scope: Scope, receive: Receive, language: str, query: str) -> Rendered | None:
        """Gradio's answer to this path in a language; None where it is no page, which is not kept.

        A page says whether its address names the language.
        """
        key = (scope["path"], language, query)
        async with self._making:
            if key not in self._rendered:
                if (rendered := await self._make({**scope, "query_string": query.encode()}, receive)) is None:
                    return None
                self._rendered[key] = rendered
            return self._rendered[key]

    async def _make(self, scope: Scope, receive: Receive) -> Rendered | None:
        messages: list[Message] = []

        async def collect(message: Message) -> None:
            messages.append(message)

        headers = [pair for pair in scope["headers"] if pair[0] not in OURS] + [(b"host", NOWHERE.encode())]
        await self._app({**scope, "scheme": "http", "headers": headers}, receive, collect)
        start, *parts = messages
        if start["status"] != 200:
            return None
        body = b"".join(part.get("body", b"") for part in parts)
        media_type = dict(start["headers"])[b"content-type"].decode()
        return Rendered(body, media_type, hashlib.sha256(body).hexdigest()[:16])
