"""The routes from which browsers download the WebAssembly files and the models that they run."""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from starlette.requests import Request
from starlette.responses import FileResponse, PlainTextResponse, Response
from starlette.routing import Route
from starlette.types import Message, Receive, Scope, Send

from ..gradio_compat.http.addresses import address_of
from ..i18n.language import gettext
from ..jobs import limits
from . import wllama
from .files import ModelFiles

HOME = "device"  # below the page's address
ENGINE = f"{HOME}/wllama-{wllama.VERSION}/"
MODELS = f"{HOME}/models/"
BYTES_PER_SECOND = 125e6  # a connection of a gigabit
PART = 2**16  # bytes: what waits in memory for each client
STALLED_SECONDS = 60.0


class _Pace:
    """Keeps all downloads together to `BYTES_PER_SECOND`, so that thirty of them leave the cores to the slider."""

    def __init__(self) -> None:
        self.downloads: Counter[str] = Counter()  # that are open, by network address
        self._free = 0.0  # the moment at which everything that was sent would have been sent at this speed

    async def wait(self, size: int) -> None:
        """Wait until `size` more bytes may have been sent."""
        now = time.monotonic()
        self._free = max(self._free, now) + size / BYTES_PER_SECOND
        await asyncio.sleep(self._free - now)


PACE = _Pace()


class _LargeFile(FileResponse):
    """A file that is read in large parts, each of which is a call in a thread, and sent in small ones at one pace.

    A client who takes nothing for a minute, or whose file has been deleted, loses the connection.
    """

    chunk_size = 2**20

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def send_at_pace(message: Message) -> None:
            body = message.get("body", b"")
            parts = [body[start : start + PART] for start in range(0, len(body), PART)] or [body]
            for part in parts:
                is_last = part is parts[-1]
                more = {"more_body": message.get("more_body", False) or not is_last} if body else {}
                await asyncio.wait_for(send({**message, **({"body": part} if body else {}), **more}), STALLED_SECONDS)
                await PACE.wait(len(part))
            if body and not Path(self.path).exists():
                raise ConnectionAbortedError("the file has been deleted")

        address = address_of(Request(scope))
        if not limits.has_room(limits.DOWNLOADS, PACE.downloads.total(), bool(address) and PACE.downloads[address] > 0):
            words = gettext("Too many downloads. Try again in a minute.")
            return await PlainTextResponse(words, 503, {"retry-after": "60"})(scope, receive, send)
        PACE.downloads[address] += 1
        try:
            with suppress(TimeoutError, ConnectionAbortedError):
                await super().__call__(scope, receive, send_at_pace)
        finally:
            PACE.downloads -= Counter([address])  # without those that have none


def routes(files: ModelFiles) -> Sequence[Route]:
    """The routes: each answers with a whole file or a range of it, and a strong ETag."""

    def engine(request: Request) -> Response:
        name = request.path_params["name"]
        if name not in wllama.FILES or not (path := wllama.folder() / name).is_file():
            return _missing()
        media_type = "application/wasm" if path.suffix == ".wasm" else "text/javascript"
        return _answer(request, _LargeFile(path, media_type=media_type), wllama.FILES[name][1])

    def model(request: Request) -> Response:
        if (found := files.find(request.path_params["name"])) is None:
            return _missing()
        path, file = found
        return _answer(request, _LargeFile(path, media_type="application/octet-stream"), file.sha256)

    return [Route(f"/{ENGINE}{{name}}", engine), Route(f"/{MODELS}{{name}}", model)]


def _answer(request: Request, response: FileResponse, digest: str) -> Response:
    etag = f'"{digest[:32]}"'
    headers = {"etag": etag, "cache-control": "no-cache"}
    if request.headers.get("if-none-match") == etag:
        return Response(status_code=304, headers=headers)
    response.headers.update(headers)
    return response


def _missing() -> Response:
    return PlainTextResponse(gettext("This file is no longer on the server. Start the download again."), 404)
