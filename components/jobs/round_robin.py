"""Who comes next: round robin over network addresses, then over the clients of an address, then over a client's jobs.

Many take long turns. At three levels there are two queues, of which the second waits. See docs/architecture.md, "Jobs".
"""

from collections import defaultdict
from collections.abc import Collection
from dataclasses import dataclass
from itertools import count, groupby
from typing import Any

from ..limits import FEW, LONG_TURN_SECONDS, REMEMBERED_TURNS, SHARE, TURN_SECONDS

Path = tuple[Any, ...]  # of a job: is it background, has it begun, address, is a result seen, client, number
QUEUES = {0: SHARE, 1: 1, 3: SHARE}  # levels of two queues: turns of the first, False, to one of the second, True


@dataclass
class _Turn:
    last: int  # numbers the ends of all turns; of a newcomer, the arrival
    used: float = 0.0  # seconds of the present turn
    holder: Path = ()  # whose turn it is at the next level


class Turns:
    """The turns of all, by their paths, which are cut at their levels."""

    def __init__(self, seconds: float = TURN_SECONDS) -> None:
        self._seconds, self._numbers = seconds, count()
        self._turns = defaultdict[Path, _Turn](lambda: _Turn(next(self._numbers)))

    def choose(self, paths: Collection[Path]) -> Path:
        """The path of the job that comes next, of one or more."""
        path = Path()
        while path not in paths:
            level = len(path)
            path = self._next(path, list(dict.fromkeys(other[: level + 1] for other in paths if other[:level] == path)))
        return path

    def _next(self, above: Path, waiting: list[Path]) -> Path:
        if len(above) in QUEUES:
            first, second = self._turns[*above, False], self._turns[*above, True]
            if second.used >= TURN_SECONDS:
                first.used = second.used = 0.0
            return (*above, first.used >= TURN_SECONDS * QUEUES[len(above)]) if len(waiting) > 1 else waiting[0]
        turns, holder = {path: self._turns[path] for path in waiting}, self._turns[above].holder
        is_long = len(waiting) > FEW and above[1] and len(above) < 5  # of addresses and clients that have begun
        if holder not in turns or turns[holder].used >= (LONG_TURN_SECONDS if is_long else self._seconds):
            self._turns[holder].last = next(self._numbers)
            holder = self._turns[above].holder = min(waiting, key=lambda path: turns[path].last)
            turns[holder].used = 0.0
        return holder

    def count(self, job: Path, seconds: float) -> None:
        """Charge a job for the seconds of a turn."""
        if len(self._turns) > REMEMBERED_TURNS:
            self._turns.clear()
        for level in range(len(job)):
            self._turns[job[: level + 1]].used += seconds

    def in_order(self, paths: Collection[Path]) -> list[Path]:
        """The paths as they come if each has one turn, first those of first queues."""
        by_address = groupby(sorted(paths, key=self._rank), key=lambda path: path[:3])
        turns = [(*path[:2], number, path) for _, group in by_address for number, path in enumerate(group)]
        return [turn[-1] for turn in sorted(turns, key=lambda turn: turn[:-1])]

    def _rank(self, path: Path) -> list[float]:
        parts = [path[: level + 1] for level in range(len(path))]
        last = [-1 if self._turns[part[:-1]].holder == part else self._turns[part].last for part in parts]
        return [bool(path[level]) if level in QUEUES else last[level] for level in range(len(path))]
