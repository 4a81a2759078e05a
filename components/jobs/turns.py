"""Fair shares of used seconds: jobs that somebody waits for come before background jobs. Knows no threads.

Shares are fair first among network addresses, then among the clients of an address, then among the jobs of a client. A
new client starts with the use of the client that was scheduled last, so that it cannot take all turns.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from enum import Enum
from typing import TypeVar

SHARE = 8  # seconds of what people wait for, to one of the background beside it
WEIGHT = 4  # times as many of a client's seconds go to a job that comes first
LONG = 0.5  # seconds of a turn that others notice
SHORTEST = 1e-4  # seconds that a turn counts at least
REMEMBERED = 10_000  # clients and addresses whose use is known


class Urgency(Enum):
    """How much somebody waits for a job."""

    FIRST = "what its client asked for last"
    USUAL = "what its client looks at"
    BACKGROUND = "nobody waits for it"


@dataclass(eq=False)
class Account:
    """What counts for a job's turns: whose it is, how urgent, and what it has used."""

    client: str
    address: str = ""  # "" where it is unknown: then the client counts as an address of its own
    urgency: Urgency = Urgency.USUAL
    seconds: float = 0.0  # of its turns so far
    weighted_seconds: float = 0.0  # the same, less for a job that comes first
    last_seconds: float = LONG  # of its last turn


AnAccount = TypeVar("AnAccount", bound=Account)


class Turns:
    """What everybody has used, and who comes next."""

    def __init__(self) -> None:
        # Seconds of each ("address", name) and ("client", name), and of those whose turn was the last.
        self._used: OrderedDict[tuple[str, str], float] = OrderedDict()
        self._level = dict.fromkeys(("address", "client"), 0.0)  # nobody begins with less
        self._owed = 0.0  # seconds to the background

    def admit(self, job: Account, others: Iterable[Account]) -> None:
        """Let a new job take part beside the `others` that have not ended."""
        of_client = [other.weighted_seconds for other in others if other.client == job.client]
        job.weighted_seconds = min(of_client, default=0.0)
        for key in _keys(job):
            self._used[key] = max(self._used.get(key, 0.0), self._level[key[0]])
            self._used.move_to_end(key)
        while len(self._used) > REMEMBERED:
            self._used.popitem(last=False)

    def choose(self, jobs: Sequence[AnAccount]) -> AnAccount | None:
        """Which of the jobs comes next: by urgency, then by the least use of its address, its client, and itself."""
        urgent = [job for job in jobs if job.urgency is not Urgency.BACKGROUND]
        background = [job for job in jobs if job.urgency is Urgency.BACKGROUND]
        chosen = min(background, key=self._has_used, default=None)
        if urgent and (chosen is None or self._owed < min(chosen.last_seconds, LONG)):
            chosen = min(urgent, key=self._has_used)
        if chosen is not None:
            for (kind, _), used in zip(_keys(chosen), self._has_used(chosen), strict=False):
                self._level[kind] = max(self._level[kind], used)
        return chosen

    def count(self, job: Account, seconds: float) -> None:
        """Charge a job for the seconds of a turn."""
        job.last_seconds = seconds = max(seconds, SHORTEST)
        job.seconds += seconds
        job.weighted_seconds += seconds / WEIGHT if job.urgency is Urgency.FIRST else seconds
        for key in _keys(job):
            self._used[key] = self._used.get(key, self._level[key[0]]) + seconds
        if job.urgency is Urgency.BACKGROUND:
            self._owed = max(0.0, self._owed - seconds)
        else:
            self._owed = min(self._owed + seconds / SHARE, LONG)

    def _has_used(self, job: Account) -> tuple[float, float, float]:
        of_address, of_client = (self._used.get(key, self._level[key[0]]) for key in _keys(job))
        return of_address, of_client, job.weighted_seconds


def _keys(job: Account) -> tuple[tuple[str, str], tuple[str, str]]:
    return ("address", job.address or f"of {job.client}"), ("client", job.client)
