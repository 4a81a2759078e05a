"""What the page's process leaves behind: a folder of its own while it runs, and nothing once it has ended.

Imports nothing that takes long, so that both can be set up before slow imports: gradio reads `GRADIO_TEMP_DIR` when it
is imported.
"""

import atexit
import os
import shutil
import signal
import sys
import tempfile
import threading
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from filelock import FileLock, Timeout

VARIABLE, PREFIX, LOCK = "GRADIO_TEMP_DIR", "page-", ".lock"
STEP_SECONDS = 1.0  # that jobs have to end their steps
MAX_SECONDS = 2.5  # after which the process ends even if a cleanup hangs


def open_temporary_folder() -> Path:
    """Make the folder for uploads, exports and gradio's own files, in the one that the environment names.

    The process holds it by a lock and removes it when it ends. The folder of a process that was killed is removed when
    the next one starts.
    """
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


def has_browser() -> bool:
    """Whether somebody started this process in a terminal of a machine with a display."""
    has_display = sys.platform in ("win32", "darwin") or bool({"DISPLAY", "WAYLAND_DISPLAY"} & os.environ.keys())
    return has_display and sys.stdout.isatty()


def on_signal(*cleanups: Callable[[], object]) -> None:
    """On SIGTERM and Ctrl-C, call these functions, remove temporary files, and end the process with status 0."""

    def end(*_: object) -> None:
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, signal.SIG_IGN)
        threading.Timer(MAX_SECONDS, os._exit, (0,)).start()
        for step in (*cleanups, atexit._run_exitfuncs, sys.stdout.flush, sys.stderr.flush):
            try:
                step()
            except Exception as error:  # continue with the other steps
                print(f"error during shutdown: {type(error).__name__}", file=sys.stderr)
        os._exit(0)  # a normal exit would end threads inside torch, which then aborts

    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, end)
