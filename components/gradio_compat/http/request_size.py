"""Bounds for the size of requests.

Gradio bounds each uploaded file (`launch(max_file_size=...)`), but neither the body of a call, nor all files of an
upload, nor all uploads together. A part of an upload that is no file is a TypeError with a traceback.

Tried with gradio 6.25 and 6.31. Test: `tests/page/gradio_compat/test_request_size.py`.
"""

from __future__ import annotations

import math
import shutil
from collections.abc import Iterator
from pathlib import Path

from starlette.concurrency import run_in_threadpool
from starlette.datastructures import Headers
from starlette.exceptions import HTTPException
from starlette.formparsers import MultiPartException
from starlette.responses import PlainTextResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from components.gradio_compat.upload_folder import DOWNLOADS, upload_folder
from components.i18n.language import gettext
from components.jobs import limits

ENVELOPE = 64 * 2**10  # bytes around the files of an upload
LOOKS = 50  # at all uploads, until they are as many bytes as they may be


class BoundedRequests:
    """ASGI middleware: refuses requests that are too large with a message, and makes room for new uploads."""

    def __init__(self, app: ASGIApp) -> None:
        self._app, self._arrived = app, math.inf  # bytes of uploads since the last look at all of them

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Hand the request on, bounded."""
        if scope["type"] != "http":
            return await self._app(scope, receive, send)
        headers = Headers(scope=scope)
        uploads = headers.get("content-type", "").startswith("multipart/")
        max_bytes = limits.UPLOAD.value + ENVELOPE if uploads else limits.REQUEST.value
        words = gettext("The request exceeds the maximum allowed size of {limit:,} bytes.", limit=max_bytes)
        length = headers.get("content-length", "0")
        if not length.isdecimal() or len(length) > 18 or int(length) > max_bytes:
            return await PlainTextResponse(words, 413)(scope, receive, send)
        if uploads:
            self._arrived += int(length) or max_bytes
            if self._arrived > limits.UPLOADS.value / LOOKS:  # a look at many files takes its time
                self._arrived = 0
                await run_in_threadpool(make_room, upload_folder(), limits.UPLOADS.value - int(length))
        seen = 0

        async def bounded() -> Message:
            nonlocal seen
            message = await receive()
            seen += len(message.get("body", b""))
            if seen > max_bytes:  # more than its header said; of an upload gradio then deletes what it has written
                raise MultiPartException(words) if uploads else HTTPException(413, words)
            return message

        try:
            await self._app(scope, bounded, send)
        except TypeError:  # what gradio raises for a part that is no file
            if not uploads:
                raise
            words = gettext("A part of the upload is not a file or has no name.")
            await PlainTextResponse(words, 400)(scope, receive, send)


def make_room(folder: Path, max_bytes: int) -> None:
    """Delete the oldest uploads, whole or broken off, until the others have no more than `most` bytes."""
    uploads = sorted(_uploads(folder))
    total = sum(size for _, size, _ in uploads)
    for _, size, path in uploads:
        if total <= max_bytes:
            return
        shutil.rmtree(path, ignore_errors=True) if path.is_dir() else path.unlink(missing_ok=True)
        total -= size


def _uploads(folder: Path) -> Iterator[tuple[float, int, Path]]:
    """Time of writing, bytes and path of each upload."""
    for path in folder.iterdir() if folder.is_dir() else ():
        if path.name.startswith(DOWNLOADS):
            continue
        try:
            files = [file.stat() for file in path.iterdir()] if path.is_dir() else [path.stat()]
        except OSError:  # another request has just deleted it
            continue
        yield max((file.st_mtime for file in files), default=0.0), sum(file.st_size for file in files), path
