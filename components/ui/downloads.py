"""Files that tabs write and clients download: in one temporary folder, within a limit of disk space, deleted at last.

A finished file is kept for a while (an export for ten minutes), since a slow client may still download it. A new file
is refused where no older one can be deleted for it.
"""

import math
import shutil
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from intraslice.core.errors import UserError

from .. import limits
from ..gradio_compat.requests import DOWNLOADS, allocated_bytes, upload_folder
from ..i18n.language import lazy_gettext
from ..jobs.waiting import JobSemaphore
from ..limits import Limit

WRITERS = JobSemaphore(limits.MAX_WRITERS, lazy_gettext("Waiting for other exports to finish"))
# Saves the file that a hidden download button has just received.
SAVE = """(file) => {
    if (file) Object.assign(document.createElement("a"), { href: file.url, download: file.orig_name }).click();
    return [];
}"""


class Sent(NamedTuple):
    """A file that a client may download."""

    folder: Path
    size: int  # bytes
    moment: float  # when it was finished, by the monotonic clock


class Downloads:
    """The newest files that sum to at most `limit` bytes, each kept for `min_kept_seconds` at least."""

    def __init__(self, limit: Limit = limits.EXPORTS, min_kept_seconds: float = limits.DOWNLOAD_SECONDS) -> None:
        self._limit, self._min_kept_seconds = limit, min_kept_seconds
        home = upload_folder()  # gradio's own: it serves files there without copying them
        home.mkdir(parents=True, exist_ok=True)
        self._folder = tempfile.TemporaryDirectory(dir=home, prefix=DOWNLOADS, ignore_cleanup_errors=True)
        self._sent: list[Sent] = []
        self._being_written = 0  # bytes
        self._lock = threading.Lock()

    def put(self, name: str, write: Callable[[Path], object], size: int = 0) -> Path:
        """Let `write` write the file `name` in a folder with a random name; deletes older files to make room.

        Raises UserError if there is no room: before writing, if the `size` on the disk (bytes) is given.
        """
        with self._lock:
            self._make_room(size)
            self._being_written += size
        folder = Path(tempfile.mkdtemp(dir=self._folder.name))
        try:
            try:
                write(path := folder / name)
            finally:
                with self._lock:
                    self._being_written -= size
            with self._lock:
                self._make_room(allocated := allocated_bytes(folder))
                self._sent.append(Sent(folder, allocated, time.monotonic()))
        except BaseException:
            shutil.rmtree(folder)
            raise
        return path

    def put_text(self, name: str, text: str) -> str:
        """Write a text as the file `name`; returns its path. Raises UserError if there is no room."""
        return str(self.put(name, lambda path: path.write_text(text, encoding="utf-8")))

    def touch(self, path: Path) -> None:
        """Keep a file as if it were new."""
        with self._lock:
            for sent in [sent for sent in self._sent if sent.folder == path.parent]:
                self._sent.remove(sent)
                self._sent.append(sent._replace(moment=time.monotonic()))

    def _make_room(self, size: int) -> None:
        """Delete old files until `size` more bytes fit; a single file may exceed the limit. Raises UserError."""
        now, max_bytes, min_kept = time.monotonic(), self._limit.value, self._min_kept_seconds

        def used_bytes() -> int:
            return self._being_written + sum(sent.size for sent in self._sent)

        while self._sent and used_bytes() + size > max_bytes and now - self._sent[0].moment > min_kept:
            shutil.rmtree(self._sent.pop(0).folder, ignore_errors=True)
        if used_bytes() and used_bytes() + size > max_bytes:
            wait = min_kept - (now - self._sent[0].moment) if self._sent else min_kept
            raise UserError(
                "The server's disk space for downloads is full of files that may still be in use. Try again in "
                "{minutes} min.",
                minutes=math.ceil(wait / 60),
            )
