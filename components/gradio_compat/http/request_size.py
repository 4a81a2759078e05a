"""Bounds for the size of requests.

Gradio limits each uploaded file (`launch(max_file_size=...)`), but neither the body of a call, nor the sum of the files
of an upload, of which it takes 1,000, nor all uploads together. A part of an upload that is no file is an error with a
traceback. Here the path decides what is an upload, whatever its headers say, and gradio's parser itself has the limits.

Tried with gradio 6.30 and 6.31. Test: `tests/page/gradio_compat/test_requests.py`.
"""

from __future__ import annotations

import math
import shutil
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

from gradio import route_utils
from gradio.route_utils import GradioMultiPartParser
from python_multipart.exceptions import FormParserError
from starlette.concurrency import run_in_threadpool
from starlette.datastructures import FormData, Headers
from starlette.exceptions import HTTPException
from starlette.formparsers import MultiPartException
from starlette.responses import PlainTextResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from ... import limits
from ...i18n.language import gettext
from ..upload_folder import BYTES_PER_INODE, DOWNLOADS, allocated_bytes, upload_folder
from .routes import API

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
        is_upload = scope["path"].removeprefix(scope.get("root_path", "")) == f"{API}/upload"
        max_bytes = limits.UPLOAD.value + limits.UPLOAD_ENVELOPE if is_upload else limits.REQUEST.value
        words = gettext(
            "The request exceeds the maximum allowed size of {limit:,} bytes. Send less at once.", limit=max_bytes
        )
        length = headers.get("content-length", "0")
        if not length.isdecimal() or len(length) > 18 or int(length) > max_bytes:
            return await PlainTextResponse(words, 413)(scope, receive, send)
        if is_upload:
            folders = 2 * limits.MAX_UPLOAD_FILES * BYTES_PER_INODE  # one for each file
            self._arrived += (int(length) or max_bytes) + folders
            if self._arrived > limits.UPLOADS.value / LOOKS:  # a look at many files takes its time
                self._arrived = 0
                reserved = int(length) + limits.UPLOADS.value // LOOKS
                await run_in_threadpool(make_room, upload_folder(), limits.UPLOADS.value - reserved)
        seen = 0

        async def bounded() -> Message:
            nonlocal seen
            message = await receive()
            seen += len(message.get("body", b""))
            if seen > max_bytes:  # more than its header said; of an upload gradio then deletes what it has written
                raise MultiPartException(words) if is_upload else HTTPException(413, words)
            return message

        await self._app(scope, bounded, send)


class UploadParser(GradioMultiPartParser):
    """Gradio's parser of an upload, which refuses parts that are no files, and more than `MAX_UPLOAD_FILES`."""

    async def parse(self) -> FormData:
        """As in gradio; a boundary that is too long is an error of the client's."""
        try:
            return await super().parse()
        except FormParserError as problem:
            raise MultiPartException(str(problem)) from problem

    def on_headers_finished(self) -> None:
        """As in gradio, for one part."""
        super().on_headers_finished()
        if self._current_part.file is None or self._current_part.field_name != "files":
            raise MultiPartException(gettext("A part of the upload is not a file or has no name."))
        if self._current_files > limits.MAX_UPLOAD_FILES:
            raise MultiPartException(
                gettext("An upload may have at most {limit} files. Upload fewer.", limit=limits.MAX_UPLOAD_FILES)
            )


route_utils.GradioMultiPartParser = UploadParser  # type: ignore[misc]  # by which `upload_fn` finds it


def make_room(folder: Path, max_bytes: int) -> None:
    """Delete the oldest uploads, whole or broken off, until the others allocate at most `max_bytes` bytes of disk."""
    uploads = sorted(_uploads(folder))
    total = sum(size for _, size, _ in uploads)
    for _, size, path in uploads:
        if total <= max_bytes:
            return
        shutil.rmtree(path, ignore_errors=True) if path.is_dir() else path.unlink(missing_ok=True)
        total -= size


def _uploads(folder: Path) -> Iterator[tuple[float, int, Path]]:
    """Time of the last change, allocated bytes and path of each upload."""
    for path in folder.iterdir() if folder.is_dir() else ():
        if path.name.startswith((DOWNLOADS, ".")):
            continue
        with suppress(OSError):  # another request has just deleted it
            files = list(path.iterdir()) if path.is_dir() else [path]
            yield max((file.stat().st_mtime for file in files), default=0.0), allocated_bytes(path), path
