"""The routes from which browsers download the WebAssembly files and the models that they run."""

import asyncio
import time
from collections import Counter
from collections.abc import Hashable, Sequence
from contextlib import suppress
from pathlib import Path

from starlette.requests import Request
from starlette.responses import FileResponse, PlainTextResponse, Response
from starlette.routing import Route
from starlette.types import Message, Receive, Scope, Send

from .. import limits
from ..gradio_compat.callers import address_of
from ..i18n.language import gettext
from . import wllama
from .files import ModelFiles

HOME = "device"  # below the page's address
ENGINE = f"{HOME}/wllama-{wllama.VERSION}/"
MODELS = f"{HOME}/models/"
PART = 2**16  # bytes: what waits in memory for each client


class _Downloads:
    """All that are open; `DEVICE_BYTES_PER_SECOND` for all of them leave the cores to the slider."""

    def __init__(self) -> None:
        self.open: dict[asyncio.Timeout, Hashable] = {}  # network addresses, by what ends each when its client stalls
        self._free = 0.0  # the moment at which everything that was sent would have been sent at this speed

    async def wait(self, size: int) -> None:
        """Wait until `size` more bytes may have been sent."""
        now = time.monotonic()
        self._free = max(self._free, now) + size / limits.DEVICE_BYTES_PER_SECOND
        await asyncio.sleep(self._free - now)

    def make_room(self, address: str) -> bool:
        """Whether an address may have one more. If all places are taken, one is freed.

        The download that has waited longest for its client ends: of those of the address with the most; or, if this
        address would have as many, of its own, once that takes `SLOW_SECONDS`.
        """
        counts = Counter(self.open.values())
        if counts.total() < limits.DOWNLOADS.value:
            return True
        most, count = counts.most_common(1)[0]
        crowd, seconds = (most, 0.0) if count > counts[address] + 1 else (address, limits.SLOW_SECONDS)
        ends = {end.when() or 0.0: end for end, owner in self.open.items() if owner == crowd}
        now = asyncio.get_running_loop().time()
        if not ends or min(ends) > now + limits.STALLED_SECONDS - seconds:
            return False
        del self.open[slowest := ends[min(ends)]]
        if not slowest.expired():
            slowest.reschedule(now)
        return True


DOWNLOADS = _Downloads()


class _LargeFile(FileResponse):
    """A file that is read in large parts, each of which is a call in a thread, and sent in small ones at one pace.

    A client who takes nothing for a minute, who gives way to another, or whose file was deleted, loses the connection.
    """

    chunk_size = 2**20

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def send_at_pace(message: Message) -> None:
            body = message.get("body", b"")
            for start in range(0, max(len(body), 1), PART):
                part = body[start : start + PART]
                more = message.get("more_body", False) or start + PART < len(body)
                await send({**message, "body": part, "more_body": more} if body else message)
                if end in DOWNLOADS.open:
                    end.reschedule(asyncio.get_running_loop().time() + limits.STALLED_SECONDS)
                await DOWNLOADS.wait(len(part))
            if body and not Path(self.path).exists():
                raise ConnectionAbortedError("the file has been deleted")

        if not DOWNLOADS.make_room(address := address_of(Request(scope))):
            words = gettext("Too many downloads. Try again in a minute.")
            return await PlainTextResponse(words, 503, {"retry-after": "60"})(scope, receive, send)
        end = asyncio.timeout(limits.STALLED_SECONDS)
        DOWNLOADS.open[end] = address or end  # each client of an unknown address is alone
        try:
            with suppress(TimeoutError, ConnectionAbortedError):
                async with end:
                    await super().__call__(scope, receive, send_at_pace)
        finally:
            DOWNLOADS.open.pop(end, None)


def routes(files: ModelFiles) -> Sequence[Route]:
    """The routes: each answers with a whole file or a range of it, and a strong ETag."""

    def engine(request: Request) -> Response:
        name = request.path_params["name"]
        if name not in wllama.FILES or not (path := wllama.folder() / name).is_file():
            return _missing()
        media_type = "application/wasm" if path.suffix == ".wasm" else "text/javascript"
        return _answer(request, path, media_type, wllama.FILES[name][1])

    def model(request: Request) -> Response:
        if (found := files.find(request.path_params["name"])) is None:
            return _missing()
        return _answer(request, found.path, "application/octet-stream", found.sha256)

    return [Route(f"/{ENGINE}{{name}}", engine), Route(f"/{MODELS}{{name}}", model)]


def _answer(request: Request, path: Path, media_type: str, digest: str) -> Response:
    headers = {"etag": f'"{digest[:32]}"', "cache-control": "no-cache"}
    if request.headers.get("if-none-match") == headers["etag"]:
        return Response(status_code=304, headers=headers)
    return _LargeFile(path, media_type=media_type, headers=headers)


def _missing() -> Response:
    return PlainTextResponse(gettext("This file is no longer on the server. Start the download again."), 404)
