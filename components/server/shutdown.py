"""How the process ends when it is told to: at once, with exit status 0, and with nothing of its own left on the disk.

Imports nothing heavy, so that it can stand before whatever is.
"""

from __future__ import annotations

import atexit
import os
import signal
import sys
import threading
import time
from collections.abc import Callable

SOON = 1.0  # seconds that a job has for its step
AT_ALL = 2.5  # seconds after which it is over, whatever hangs


def when_told(*tidy: Callable[[], object]) -> None:
    """From now on SIGTERM and Ctrl-C call these, remove temporary files, and end the process.

    An interpreter that only exits would pull its threads from under torch, which aborts.
    """

    def end(*_: object) -> None:
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, signal.SIG_IGN)
        threading.Timer(AT_ALL, os._exit, (0,)).start()
        for step in (*tidy, atexit._run_exitfuncs, sys.stdout.flush, sys.stderr.flush):
            try:
                step()
            except Exception as problem:  # what is left to do goes on
                print(f"while ending: {type(problem).__name__}", file=sys.stderr)
        os._exit(0)

    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, end)


def until(done: Callable[[], bool]) -> None:
    """Wait until something is done, or `SOON`."""
    last = time.monotonic() + SOON
    while not done() and time.monotonic() < last:
        time.sleep(0.01)
