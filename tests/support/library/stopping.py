"""Cancelling a stage, for tests: its callback raises."""

from collections.abc import Callable
from itertools import count

from intraslice.core.progress import Progress, ProgressCallback


class Stopped(Exception):
    """Raised by a callback to cancel a stage."""


def stop_when(condition: Callable[[Progress], bool]) -> ProgressCallback:
    """A callback that cancels the stage at the first event of which `condition` is true."""

    def progress(event: Progress) -> None:
        if condition(event):
            raise Stopped

    return progress


def stop_at(call: int) -> ProgressCallback:
    """A callback that cancels the stage when it is called for the `call`-th time."""
    calls = count(1)
    return stop_when(lambda _: next(calls) == call)
