"""Which requests the page answers: by which of gradio's routes, and of what size; the folder of uploads.

- Gradio has some ninety routes. Several write to disk (`deep_link`), ask other servers (`proxy=`), tell about other
  clients (`monitoring`), or are meant for development. What neither the page nor a program that calls it needs is
  answered 404 before gradio sees it; so are messages for a session that has called nothing, a traceback in gradio.
- Gradio limits each uploaded file (`launch(max_file_size=...)`), but neither the body of a call, nor the sum of the
  files of an upload, of which it takes 1,000, nor all uploads together. A part of an upload that is no file is an error
  with a traceback. Here gradio's parser itself has the limits, and the path decides what is an upload.
- Gradio has no public name for its folder of uploaded and served files. The page writes its downloads there, since
  gradio copies a file from anywhere else before it serves it.

Tried with gradio 6.30 and 6.31. Tests: `tests/page/gradio_compat/test_requests.py`, `test_values.py`.
"""

import math
import os
import shutil
import stat
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import suppress
from pathlib import Path

from gradio import route_utils
from gradio.route_utils import GradioMultiPartParser
from gradio.utils import get_upload_folder, is_in_or_equal
from python_multipart.exceptions import FormParserError
from starlette.concurrency import run_in_threadpool
from starlette.datastructures import FormData, Headers, QueryParams
from starlette.exceptions import HTTPException
from starlette.formparsers import MultiPartException
from starlette.responses import PlainTextResponse
from starlette.routing import Match, Route
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from .. import limits
from ..i18n.language import gettext

READ, WRITE, ANY, API = ("GET", "HEAD"), ("POST",), ("GET", "HEAD", "POST", "DELETE"), "/gradio_api"
MESSAGES = f"{API}/queue/data"  # of a session, as they come
NEEDED = {
    # The page itself.
    **dict.fromkeys(("/", "/config", "/config/", "/favicon.ico", "/manifest.json", "/robots.txt", "/theme.css"), READ),
    **dict.fromkeys(("/assets/{path:path}", "/static/{path:path}", "/svelte/{path:path}"), READ),
    **dict.fromkeys((f"{API}/theme.css", f"{API}/app_id", f"{API}/app_id/", f"{API}/startup-events"), READ),
    f"{API}/heartbeat/{{session_hash}}": READ,
    # Calls, of the page and of programs.
    **dict.fromkeys((MESSAGES, f"{API}/queue/status"), READ),
    **dict.fromkeys((f"{API}/queue/join", f"{API}/cancel", f"{API}/reset", f"{API}/reset/"), WRITE),
    **dict.fromkeys(
        (f"{API}/{way}/{{name}}{end}" for way in ("api", "run", "call", "call/v2") for end in ("", "/")), WRITE
    ),
    **dict.fromkeys((f"{API}/call/{{name}}/{{event}}", f"{API}/call/v2/{{name}}/{{event}}"), READ),
    **dict.fromkeys((f"{API}/info", f"{API}/info/", f"{API}/openapi.json"), READ),
    **dict.fromkeys((f"{API}/mcp", f"{API}/mcp/{{path:path}}"), ANY),
    # Files.
    f"{API}/upload": WRITE,
    f"{API}/upload_progress": READ,
    f"{API}/file={{path:path}}": READ,
}
DOWNLOADS = "downloads-"  # how the names of folders begin that hold the page's downloads, not uploads
BYTES_PER_INODE = 16 * 2**10  # which file systems provide by default: so few bytes of space use up an inode
LOOKS = 50  # at all uploads, until they are as many bytes as they may be


def needed_routes(
    app: ASGIApp, page_paths: Mapping[str, Collection[str]], is_session: Callable[[str], bool]
) -> ASGIApp:
    """ASGI middleware: answers 404 to whatever is neither one of `NEEDED` nor one of the page's own paths.

    `page_paths` has the methods of the latter; `is_session` tells whether a session has called something.
    """
    needed: dict[str, Collection[str]] = {**NEEDED, **page_paths}
    # They are for matching alone.
    routes = [Route(path, lambda _: None, methods=methods) for path, methods in needed.items()]

    def is_needed(scope: Scope) -> bool:
        # A browser asks with OPTIONS whether another site's page may call: gradio has the answer.
        enough = Match.PARTIAL if scope["method"] == "OPTIONS" else Match.FULL
        found = next((route for route in routes if route.matches(scope)[0].value >= enough.value), None)
        if found is not None and found.path == MESSAGES:
            return is_session(QueryParams(scope.get("query_string", b"")).get("session_hash", ""))
        return found is not None

    async def answer(scope: Scope, receive: Receive, send: Send) -> None:
        is_refused = scope["type"] == "http" and not is_needed(scope)
        await (PlainTextResponse("not found", 404) if is_refused else app)(scope, receive, send)

    return answer


def bounded_requests(app: ASGIApp) -> ASGIApp:
    """ASGI middleware: refuses requests that are too large with a message, and makes room for new uploads."""
    arrived = math.inf  # bytes of uploads since the last look at all of them

    async def answer(scope: Scope, receive: Receive, send: Send) -> None:
        nonlocal arrived
        if scope["type"] != "http":
            return await app(scope, receive, send)
        is_upload = scope["path"].removeprefix(scope.get("root_path", "")) == f"{API}/upload"
        max_bytes = limits.UPLOAD.value + limits.UPLOAD_ENVELOPE if is_upload else limits.REQUEST.value
        words = "The request exceeds the maximum allowed size of {limit:,} bytes. Send less at once."
        words = gettext(words, limit=max_bytes)
        length = Headers(scope=scope).get("content-length", "0")
        if not length.isdecimal() or len(length) > 18 or int(length) > max_bytes:
            return await PlainTextResponse(words, 413)(scope, receive, send)
        if is_upload:
            folders = 2 * limits.MAX_UPLOAD_FILES * BYTES_PER_INODE  # one for each file
            arrived += (int(length) or max_bytes) + folders
            if arrived > limits.UPLOADS.value / LOOKS:  # a look at many files takes its time
                arrived = 0
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

        await app(scope, bounded, send)

    return answer


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
        if self._current_files > (limit := limits.MAX_UPLOAD_FILES):
            raise MultiPartException(gettext("An upload may have at most {limit} files. Upload fewer.", limit=limit))


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


def upload_folder() -> Path:
    """The folder, which may not exist yet."""
    return Path(get_upload_folder())


def is_uploaded(path: str) -> bool:
    """Whether a path lies in the folder, `..` and links resolved."""
    return is_in_or_equal(path, get_upload_folder())


def allocated_bytes(path: Path) -> int:
    """The disk space of a file or folder: allocated blocks, at least an inode's for each. Links are not followed."""
    try:
        status = path.lstat()
        inside = [Path(entry.path) for entry in os.scandir(path)] if stat.S_ISDIR(status.st_mode) else []
    except OSError:  # another thread has deleted it
        return 0
    blocks = getattr(status, "st_blocks", status.st_size // 512)
    return max(512 * blocks, BYTES_PER_INODE) + sum(map(allocated_bytes, inside))
