"""The page's HTML, configuration, script, styles and list of endpoints, made once for each language.

- Gradio sends the same configuration to all clients; its `gr.I18n` translates labels in the browser alone. Here each
  `LazyString` of the configuration is translated when a language is first requested.
- Gradio's own texts ("Drop File Here") are in the browser's language, `navigator.language`. So the page comes with a
  script that answers with the page's language instead.
- Gradio renders page and configuration for every request, which blocks the event loop, and buffers a megabyte for every
  slow client. Only the root address in them differs, since gradio takes it from the request's headers. So they are
  rendered once with a placeholder address, which each answer replaces; the results of the last addresses are kept.
- Gradio builds the configurations of a page's components anew for every session, on the event loop: 16 ms for this
  page, and 600 objects. It needs them for deep links alone, a route that is closed here: a session has none.
- Gradio leaves it to its script to insert the `head` of `launch`. Here it is part of the HTML, so its scripts run
  before gradio's.

Tried with gradio 6.30 and 6.31. Tests: `tests/page/gradio_compat/test_page_config.py`,
`tests/browser/test_browser_gradio.py`.
"""

import asyncio
import gzip
import hashlib
import json
import re
import zlib
from collections.abc import AsyncIterator, Mapping
from functools import lru_cache
from typing import Any
from weakref import WeakValueDictionary

import httpx
from gradio.blocks import BlocksConfig
from gradio.route_utils import get_request_origin
from starlette.datastructures import QueryParams
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response, StreamingResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from .. import limits
from ..i18n.language import ENGLISH, gettext, language, translate
from .callers import address_of

INFO = "/gradio_api/info"  # what a program reads of all endpoints; encoding it takes the event loop a third of a second
PATHS = ("/", "/config", INFO, "/isx.js", "/isx.css")
VARIANTS = {"serialize": "False", "all_endpoints": "True"}  # of INFO: queries of gradio's clients
NOWHERE = "isx-root.invalid"  # a name that no machine can have (RFC 6761)
ORIGIN = re.compile(r"https?://[\w.:\[\]-]+", re.ASCII)  # nothing that ends a string in JSON or HTML
# What of a request is answered here, and therefore kept from gradio.
OURS = {b"host", b"x-forwarded-host", b"x-forwarded-proto", b"x-gradio-server", b"if-none-match", b"accept-encoding"}
Rendered = tuple[bytes, str, str, str]  # an answer of gradio's: body, media type, a name for its content, caching
SENT = 32  # answers as they were sent, which are kept
CHUNK = 2**16  # bytes


class PageConfig(BlocksConfig):
    """The components of a page, of which gradio gives every session a copy: one without their configurations."""

    def __copy__(self) -> BlocksConfig:
        copied = super().__copy__()
        vars(copied)["config_for_block"] = lambda *_: {}
        return copied


def translated(value: Any) -> Any:
    """A copy of plain lists and dictionaries, such as a page's configuration, with all `LazyString`s translated."""
    if isinstance(value, str):
        return translate(value)
    if isinstance(value, Mapping):
        return {key: translated(inside) for key, inside in value.items()}
    if isinstance(value, list | tuple):
        return [translated(inside) for inside in value]
    return value


class CachedPage:
    """ASGI middleware: answers `GET` of page and configuration from memory, with `headers`; `head` is HTML."""

    def __init__(self, app: ASGIApp, headers: Mapping[str, str] | None = None, head: str = "") -> None:
        self._app, self._headers, self._head = app, dict(headers or {}), head
        self._rendered: dict[tuple[str, str, str], Rendered] = {}
        self._making = asyncio.Lock()
        self._pace: WeakValueDictionary[str, asyncio.Lock] = WeakValueDictionary()  # by network address

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["method"] != "GET" or scope["path"] not in PATHS:
            return await self._app(scope, receive, send)
        request = Request(scope)
        try:
            url = get_request_origin(request, request.url.path)  # as the client sees it
            origin = f"{url.scheme}://{url.netloc.decode('latin-1')}"
        except (httpx.InvalidURL, ValueError):
            origin = ""
        if not ORIGIN.fullmatch(origin):
            words = gettext("The request's Host header is not a valid host name.")
            return await PlainTextResponse(words, 400)(scope, receive, send)
        query = QueryParams(scope.get("query_string", b""))
        parts = [f"lang={language()}"] if query.get("lang") == language() else []
        if scope["path"] == INFO:
            parts += [f"{name}={value}" for name, value in VARIANTS.items() if query.get(name) == value]
        rendered = await self._answer(scope, receive, "&".join(parts))
        if rendered is None:
            return await self._app(scope, receive, send)
        body, media_type, version, caching = rendered
        etag = f'"{version}-{zlib.crc32(origin.encode()):x}"'
        headers = self._headers | {"etag": etag, "cache-control": caching}
        headers["vary"] = "accept-language, accept-encoding"
        if request.headers.get("if-none-match") == etag:
            return await Response(status_code=304, headers=headers)(scope, receive, send)
        zipped = "gzip" in request.headers.get("accept-encoding", "")
        headers |= {"content-encoding": "gzip"} if zipped else {}
        body = _as_sent(body, origin, zipped)
        headers["content-length"] = str(len(body))
        response = StreamingResponse(in_chunks(body), headers=headers, media_type=media_type)
        if address := address_of(request):  # else it may be that of all clients behind a proxy
            async with self._pace.setdefault(address, asyncio.Lock()):  # not while sending: a client may never read
                await asyncio.sleep(len(body) / limits.PAGE_BYTES_PER_SECOND)
        await response(scope, receive, send)

    async def _answer(self, scope: Scope, receive: Receive, query: str) -> Rendered | None:
        """Gradio's answer to this path in the current language; None where it is no page, which is not kept."""
        key = (scope["path"], language(), query)
        messages: list[Message] = []

        async def collect(message: Message) -> None:
            messages.append(message)

        async with self._making:
            if key in self._rendered:
                return self._rendered[key]
            headers = [pair for pair in scope["headers"] if pair[0] not in OURS] + [(b"host", NOWHERE.encode())]
            asked = {"query_string": query.encode(), "scheme": "http", "headers": headers}
            await self._app({**scope, **asked}, receive, collect)
            start, *parts = messages
            if start["status"] != 200:
                return None
            body = b"".join(part.get("body", b"") for part in parts)
            answered = {name.decode(): value.decode() for name, value in start["headers"]}
            if scope["path"] == "/":
                start_of_head = f"<head><script>{_language_script(is_named=bool(query))}</script>"
                body = body.replace(b"<head>", start_of_head.encode(), 1)
                body = body.replace(b"</head>", translate(self._head).encode() + b"</head>", 1)
            version, caching = hashlib.sha256(body).hexdigest()[:16], answered.get("cache-control", "no-cache")
            self._rendered[key] = body, answered["content-type"], version, caching
            return self._rendered[key]


@lru_cache(maxsize=SENT)
def _as_sent(body: bytes, origin: str, zipped: bool) -> bytes:
    """An answer of gradio's for clients who see the page at `origin`."""
    body = body.replace(f"http://{NOWHERE}".encode(), origin.encode())
    return gzip.compress(body, 1, mtime=0) if zipped else body


def _language_script(is_named: bool) -> str:
    """A script that sets the page's language, which replaces a browser's English variant where the address names it."""
    code = language()
    script = f'document.documentElement.lang = "{code}";'
    if is_named or code != ENGLISH:
        for name, value in (("language", code), ("languages", [code])):
            script += f'Object.defineProperty(navigator, "{name}", {{ get: () => {json.dumps(value)} }});'
    return script


async def in_chunks(body: bytes) -> AsyncIterator[bytes]:
    """The body in parts: of a client who does not read, one part waits and not all of it."""
    for start in range(0, len(body), CHUNK):
        yield body[start : start + CHUNK]
