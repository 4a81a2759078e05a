"""Progress of long-running stages: the event, the callback that receives it, and the default display.

Every long-running stage has a parameter `progress`, which is called after every unit of work of at most half a second.
An exception that it raises ends the stage, which is how a caller cancels. The dense model is then unchanged.
"""

import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from tqdm.auto import notebook_tqdm, tqdm
from tqdm.std import tqdm as terminal_tqdm


@dataclass(frozen=True)
class Progress:
    """`done` of `total` units of `stage` are finished.

    `partial` returns the stage's result on the finished units, where that is useful before the stage ends. The result
    may be used until the callback returns.
    """

    stage: str
    done: int
    total: int
    partial: Callable[[], Any] | None = field(default=None, compare=False, repr=False, kw_only=True)


ProgressCallback = Callable[[Progress], None]
ProgressOption = ProgressCallback | bool  # True: the default display; False: none
Pause = Callable[[], None]  # reports the stage's last event again, so that the caller can cancel


def progress_callback(progress: ProgressOption) -> ProgressCallback:
    """The callback itself, the default display for True, or none for False. Raises TypeError for anything else."""
    if isinstance(progress, bool):
        return ProgressDisplay() if progress else ignore_progress
    if not callable(progress):
        raise TypeError(f"progress must be True, False or a callable that takes a Progress, got {progress!r}.")
    return progress


def ignore_progress(event: Progress) -> None:
    """Display nothing."""


def no_pause() -> None:
    """Do nothing."""


class ProgressDisplay:
    """Displays a bar for every stage on a terminal or in a notebook, elsewhere a line when it ends; on stderr."""

    def __init__(self) -> None:
        self._stages: dict[str, tuple[float, tqdm | None]] = {}  # the start of each, and its bar on a terminal
        self._last_finished = ""

    def __call__(self, event: Progress) -> None:
        """Display `event`, unless it repeats the last one."""
        if event.stage not in self._stages:
            if event.stage == self._last_finished and event.done == event.total:
                return
            is_interactive = sys.stderr.isatty() or notebook_tqdm is not terminal_tqdm
            # The bar of a nested stage disappears once it is full.
            bar = tqdm(desc=event.stage, total=event.total, leave=not self._stages) if is_interactive else None
            self._stages[event.stage], self._last_finished = (time.monotonic(), bar), ""
        start, bar = self._stages[event.stage]
        if bar is not None:
            bar.update(event.done - bar.n)
        if event.done == event.total:
            del self._stages[event.stage]
            self._last_finished = event.stage
            if bar is None:
                seconds = time.monotonic() - start
                print(f"{event.stage} {event.done}/{event.total}, {seconds:.1f} s", file=sys.stderr, flush=True)
            else:
                bar.close()
