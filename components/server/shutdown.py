"""How the process ends when it is told to: at once, with exit status 0, and with no file of its own left behind.

Imports nothing that takes long, so that it can be called before the rest is imported.
"""

from __future__ import annotations

import atexit
import os
import signal
import sys
import threading
import time
from collections.abc import Callable

STEP_SECONDS = 1.0  # for a job to end its step
MAX_SECONDS = 2.5  # after which the process ends, whatever hangs


def on_signal(*cleanups: Callable[[], object]) -> None:
    """Let SIGTERM and Ctrl-C call these functions, remove temporary files, and end the process.

    A plain exit of the interpreter would end threads inside torch, which then aborts.
    """

    def end(*_: object) -> None:
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, signal.SIG_IGN)
        threading.Timer(MAX_SECONDS, os._exit, (0,)).start()
        for step in (*cleanups, atexit._run_exitfuncs, sys.stdout.flush, sys.stderr.flush):
            try:
                step()
            except Exception as problem:  # the other steps still follow
                print(f"while ending: {type(problem).__name__}", file=sys.stderr)
        os._exit(0)

    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, end)


def wait_for(condition: Callable[[], bool]) -> None:
    """Wait until a condition holds, for at most `STEP_SECONDS`."""
    end = time.monotonic() + STEP_SECONDS
    while not condition() and time.monotonic() < end:
        time.sleep(0.01)
