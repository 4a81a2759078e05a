"""Shutdown on a signal: at once, with exit status 0, and without leaving temporary files behind.

Imports only the standard library, so that it can be set up before slow imports.
"""

from __future__ import annotations

import atexit
import os
import signal
import sys
import threading
import time
from collections.abc import Callable

STEP_SECONDS = 1.0  # that jobs have to end their steps
MAX_SECONDS = 2.5  # after which the process ends even if a cleanup hangs


def on_signal(*cleanups: Callable[[], object]) -> None:
    """On SIGTERM and Ctrl-C, call these functions, remove temporary files, and end the process.

    A normal exit of the interpreter would end threads inside torch, which then aborts.
    """

    def end(*_: object) -> None:
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, signal.SIG_IGN)
        threading.Timer(MAX_SECONDS, os._exit, (0,)).start()
        for step in (*cleanups, atexit._run_exitfuncs, sys.stdout.flush, sys.stderr.flush):
            try:
                step()
            except Exception as error:  # continue with the other steps
                print(f"error during shutdown: {type(error).__name__}", file=sys.stderr)
        os._exit(0)

    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, end)


def wait_for(condition: Callable[[], bool]) -> None:
    """Wait until a condition holds, for at most `STEP_SECONDS`."""
    end = time.monotonic() + STEP_SECONDS
    while not condition() and time.monotonic() < end:
        time.sleep(0.01)
