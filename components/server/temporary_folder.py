"""The folder for everything that the page writes beside its cache: uploads, exports, and gradio's own files.

Each process has a folder of its own, which it holds by a lock and removes when it ends. The folder of a process that
was killed is removed when the next one starts. Imports nothing that takes long: gradio reads `GRADIO_TEMP_DIR` when it
is imported.
"""

from __future__ import annotations

import atexit
import os
import shutil
import tempfile
from contextlib import suppress
from pathlib import Path

from filelock import FileLock, Timeout

VARIABLE = "GRADIO_TEMP_DIR"
PREFIX = "page-"
LOCK = ".lock"


def open_temporary_folder() -> Path:
    """Make the folder of this process, in the one that the environment names, and let gradio use it."""
    home = Path(os.environ.get(VARIABLE) or Path(tempfile.gettempdir()) / "gradio")
    home.mkdir(parents=True, exist_ok=True)
    with FileLock(home / LOCK):
        for other in home.glob(f"{PREFIX}*"):
            with suppress(Timeout, OSError), FileLock(other / LOCK, timeout=0):
                shutil.rmtree(other, ignore_errors=True)
        folder = Path(tempfile.mkdtemp(dir=home, prefix=PREFIX))
        lock = FileLock(folder / LOCK, thread_local=False)
        lock.acquire()
    atexit.register(_remove, folder, lock, os.getpid())
    os.environ[VARIABLE] = str(folder)
    return folder


def _remove(folder: Path, lock: FileLock, process: int) -> None:
    if os.getpid() == process:  # not in a fork
        lock.release()
        shutil.rmtree(folder, ignore_errors=True)
