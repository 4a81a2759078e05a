"""How much memory the processes take that this one started."""

from __future__ import annotations

import threading
from collections.abc import Collection, Iterable
from contextlib import suppress

import psutil

MEBI = 2**20


class Memory:
    """Resident now, and the most while it was looked at, in MiB: of the processes started, and of theirs with them.

    Args:
        ignored: the ids of processes that do not count.
    """

    def __init__(self, ignored: Collection[int] = ()) -> None:
        self._ignored = frozenset(ignored)
        self.most = self.most_of_all = 0
        self._ended = threading.Event()

    def now(self) -> int:
        """Of all of them."""
        children, all_of_them = (psutil.Process().children(recursive) for recursive in (False, True))
        self.most = max(self.most, self._resident(children))
        self.most_of_all = max(self.most_of_all, resident := self._resident(all_of_them))
        return resident

    def watch(self) -> None:
        """Until `end`."""
        while not self._ended.wait(0.5):
            self.now()

    def end(self) -> None:
        """Look no more."""
        self._ended.set()

    def _resident(self, processes: Iterable[psutil.Process]) -> int:
        total = 0
        for process in processes:
            with suppress(psutil.NoSuchProcess):  # it has just ended
                total += process.memory_info().rss if process.pid not in self._ignored else 0
        return total // MEBI
