"""Files that people download: in one temporary folder, bounded by bytes, gone when the app ends.

A finished file is kept for ten minutes at least, since a slow reader still fetches it: where no older one can make
room, a new one is refused.

What a killed app left goes when the next one starts: a live one holds its folder by a lock.
"""

from __future__ import annotations

import math
import shutil
import tempfile
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

from filelock import FileLock, Timeout

from components.gradio_compat.upload_folder import DOWNLOADS, upload_folder
from components.i18n.language import lazy_gettext
from components.jobs import limits
from intraslice.core.errors import UserError

LOCK = ".lock"
FRESH = 600.0  # seconds that a finished file is kept
# Gives the browser a file that a hidden download button has just received.
SAVE = """(file) => {
    if (file) Object.assign(document.createElement("a"), { href: file.url, download: file.orig_name }).click();
    return [];
}"""


class Sent(NamedTuple):
    """A file that somebody may fetch."""

    folder: Path
    size: int  # bytes
    moment: float  # when it was there, by the monotonic clock


class Downloads:
    """The newest files that sum to at most `limits.EXPORTS` bytes.

    The folder lies in gradio's own, so that gradio serves the files where they are instead of copying them.
    """

    def __init__(self) -> None:
        home = upload_folder()
        home.mkdir(parents=True, exist_ok=True)
        for left in home.glob(f"{DOWNLOADS}*"):
            with suppress(Timeout, OSError), FileLock(left / LOCK, timeout=0):
                shutil.rmtree(left, ignore_errors=True)
        self._folder = tempfile.TemporaryDirectory(dir=home, prefix=DOWNLOADS, ignore_cleanup_errors=True)
        self._alive = FileLock(Path(self._folder.name) / LOCK, thread_local=False)
        self._alive.acquire()
        self._sent: list[Sent] = []
        self._being_written = 0  # bytes
        self._lock = threading.Lock()

    def put(self, name: str, write: Callable[[Path], object], size: int = 0) -> Path:
        """Let `write` make the file `name`, in a folder that nobody can guess; older files make room for it.

        Args:
            size: bytes of disk that writing takes, where they are known before.

        Raises:
            UserError: there is no room, before anything is written where `size` is given.
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
                self._make_room(path.stat().st_size)
                self._sent.append(Sent(folder, path.stat().st_size, time.monotonic()))
        except BaseException:
            shutil.rmtree(folder)
            raise
        return path

    def _make_room(self, size: int) -> None:
        """Delete what is old until there are `size` bytes more; one file alone may be larger. Raises UserError."""
        now, max_bytes = time.monotonic(), limits.EXPORTS.value

        def taken() -> int:
            return self._being_written + sum(sent.size for sent in self._sent)

        while self._sent and taken() + size > max_bytes and now - self._sent[0].moment > FRESH:
            shutil.rmtree(self._sent.pop(0).folder, ignore_errors=True)
        if taken() and taken() + size > max_bytes:
            wait = FRESH - (now - self._sent[0].moment) if self._sent else FRESH
            raise UserError(
                lazy_gettext(
                    "The disk space for exports is full of files less than ten minutes old, which may still be "
                    "downloaded. Try again in {minutes} min.",
                    minutes=math.ceil(wait / 60),
                )
            )
