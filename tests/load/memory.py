"""How much memory the processes take that this one started."""

from __future__ import annotations

import threading
from collections.abc import Iterable
from contextlib import suppress

import psutil

MEBI = 2**20


class Memory:
    """Resident now, and the most while it was looked at, in MiB: of the processes started, and of theirs with them."""

    def __init__(self) -> None:
        self.most = self.most_of_all = 0
        self._ended = threading.Event()

    def now(self) -> int:
        """Of all of them."""
        children, all_of_them = (psutil.Process().children(recursive) for recursive in (False, True))
        self.most = max(self.most, _resident(children))
        self.most_of_all = max(self.most_of_all, resident := _resident(all_of_them))
        return resident

    def watch(self) -> None:
        """Until `end`."""
        while not self._ended.wait(0.5):
            self.now()

    def end(self) -> None:
        """Look no more."""
        self._ended.set()


def _resident(processes: Iterable[psutil.Process]) -> int:
    total = 0
    for process in processes:
        with suppress(psutil.NoSuchProcess):  # it has just ended
            total += process.memory_info().rss
    return total // MEBI
