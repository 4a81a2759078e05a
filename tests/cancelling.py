"""Progress callbacks that cancel."""

from __future__ import annotations

from intraslice.core.progress import Progress, ProgressCallback


class Cancelled(Exception):
    """Raised by a progress callback to end the stage that calls it."""


def cancelling(call: int) -> ProgressCallback:
    """A callback whose `call`-th call raises Cancelled."""
    calls = 0

    def progress(event: Progress) -> None:
        nonlocal calls
        calls += 1
        if calls == call:
            raise Cancelled

    return progress
