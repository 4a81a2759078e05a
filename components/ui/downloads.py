"""Files that people download: in one temporary folder, bounded by bytes, gone when the app ends.

What a killed app left goes when the next one starts: a live one holds its folder by a lock.
"""

from __future__ import annotations

import shutil
import tempfile
import threading
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from filelock import FileLock, Timeout

from components.gradio_compat.upload_folder import DOWNLOADS, upload_folder

LOCK = ".lock"
# Gives the browser a file that a hidden download button has just received.
SAVE = """(file) => {
    if (file) Object.assign(document.createElement("a"), { href: file.url, download: file.orig_name }).click();
    return [];
}"""


class Downloads:
    """The newest files that sum to at most `limit` bytes; the last one stays even if it is larger.

    The folder lies in gradio's own, so that gradio serves the files where they are instead of copying them.
    """

    def __init__(self, limit: int = 2 * 2**30) -> None:
        self.limit = limit
        home = upload_folder()
        home.mkdir(parents=True, exist_ok=True)
        for left in home.glob(f"{DOWNLOADS}*"):
            with suppress(Timeout, OSError), FileLock(left / LOCK, timeout=0):
                shutil.rmtree(left, ignore_errors=True)
        self._folder = tempfile.TemporaryDirectory(dir=home, prefix=DOWNLOADS, ignore_cleanup_errors=True)
        self._alive = FileLock(Path(self._folder.name) / LOCK, thread_local=False)
        self._alive.acquire()
        self._sent: list[tuple[Path, int]] = []
        self._lock = threading.Lock()

    def put(self, name: str, write: Callable[[Path], object]) -> Path:
        """Let `write` make the file `name`, in a folder that nobody can guess; older files make room for it."""
        folder = Path(tempfile.mkdtemp(dir=self._folder.name))
        path = folder / name
        try:
            write(path)
        except BaseException:
            shutil.rmtree(folder)
            raise
        with self._lock:
            self._sent.append((folder, path.stat().st_size))
            while len(self._sent) > 1 and sum(size for _, size in self._sent) > self.limit:
                shutil.rmtree(self._sent.pop(0)[0], ignore_errors=True)
        return path
