"""Progress of long work: the event, the callback that receives it, and the display that is used by default.

Every stage that takes long has a parameter `progress`. It is called after every unit of work of at most half a second.
Whatever it raises ends the stage: that is how a caller cancels. The dense model is then as it was before.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from torch import distributed
from tqdm.auto import notebook_tqdm, tqdm
from tqdm.std import tqdm as terminal_tqdm


@dataclass(frozen=True)
class Progress:
    """`done` of `total` units of `stage` are finished.

    Args:
        partial: returns the stage's result on the units that are done, where that is useful before the stage ends. What
            it returns may be used until the callback returns.
    """

    stage: str
    done: int
    total: int
    partial: Callable[[], Any] | None = field(default=None, compare=False, repr=False, kw_only=True)


ProgressCallback = Callable[[Progress], None]
Pause = Callable[[], None]  # reports the stage's last event again, which gives the caller a chance to cancel


def progress_callback(progress: ProgressCallback | bool) -> ProgressCallback:
    """The callback that a stage's `progress` argument stands for: itself, the default display (True), or none (False).

    Raises TypeError for anything else.
    """
    if isinstance(progress, bool):
        return ProgressDisplay() if progress else ignore_progress
    if not callable(progress):
        raise TypeError(f"progress must be True, False or a function of one Progress, got {progress!r}.")
    return progress


def ignore_progress(event: Progress) -> None:
    """Display nothing."""


def no_pause() -> None:
    """Go on at once."""


@dataclass
class _Stage:
    """A stage that has begun and not ended. The bar is None where stderr is no terminal."""

    start: float
    bar: tqdm | None


class ProgressDisplay:
    """A tqdm bar on a terminal or in a notebook; elsewhere one line for every stage that ends. Both go to stderr.

    Stages may be nested. Among several processes only the first displays anything.
    """

    def __init__(self) -> None:
        self._stages: dict[str, _Stage] = {}
        self._ended = ""

    def __call__(self, event: Progress) -> None:
        """Display `event`, unless it repeats the last one."""
        if distributed.is_available() and distributed.is_initialized() and distributed.get_rank() != 0:
            return
        if event.stage not in self._stages:
            if event.stage == self._ended and event.done == event.total:
                return
            self._begin(event)
        bar = self._stages[event.stage].bar
        if bar is not None:
            bar.update(event.done - bar.n)
        if event.done == event.total:
            self._end(event)

    def _begin(self, event: Progress) -> None:
        is_interactive = sys.stderr.isatty() or notebook_tqdm is not terminal_tqdm
        # Inside another stage, whose bar is above, a bar disappears once it is full.
        bar = tqdm(desc=event.stage, total=event.total, leave=not self._stages) if is_interactive else None
        self._stages[event.stage], self._ended = _Stage(time.monotonic(), bar), ""

    def _end(self, event: Progress) -> None:
        stage, self._ended = self._stages.pop(event.stage), event.stage
        if stage.bar is None:
            seconds = time.monotonic() - stage.start
            print(f"{event.stage} {event.done}/{event.total}, {seconds:.1f} s", file=sys.stderr, flush=True)
        else:
            stage.bar.close()
