"""Whose turn it is: people's jobs before the background, fair by the seconds that turns took. Knows no threads.

Fair first among clients, then among a client's own jobs. Who comes late begins where those who are there have got to.
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
REMEMBERED = 10_000  # clients whose use is known


class Urgency(Enum):
    """How much somebody waits for a job."""

    FIRST = "what its client asked for last"
    USUAL = "what its client looks at"
    BACKGROUND = "nobody waits for it"


@dataclass(eq=False)
class Account:
    """What counts for a job's turns: whose it is, how urgent, and what it has used."""

    client: str
    urgency: Urgency = Urgency.USUAL
    seconds: float = 0.0  # of its turns so far
    weighted_seconds: float = 0.0  # the same, less for a job that comes first
    last_seconds: float = LONG  # of its last turn


AnAccount = TypeVar("AnAccount", bound=Account)


class Turns:
    """What everybody has used, and who comes next."""

    def __init__(self) -> None:
        self._used: OrderedDict[str, float] = OrderedDict()  # seconds of each client
        self._level = 0.0  # what the client had used whose turn was the last: nobody begins with less
        self._owed = 0.0  # seconds to the background

    def admit(self, job: Account, others: Iterable[Account]) -> None:
        """Let a new job take part beside the `others` that have not ended."""
        own = [other.weighted_seconds for other in others if other.client == job.client]
        job.weighted_seconds = min(own, default=0.0)
        self._used[job.client] = max(self._used.get(job.client, 0.0), self._level)
        self._used.move_to_end(job.client)
        if len(self._used) > REMEMBERED:
            self._used.popitem(last=False)

    def choose(self, jobs: Sequence[AnAccount]) -> AnAccount | None:
        """Which of the jobs comes next: by urgency, then whoever has used least, clients before jobs."""
        urgent = [job for job in jobs if job.urgency is not Urgency.BACKGROUND]
        background = [job for job in jobs if job.urgency is Urgency.BACKGROUND]
        chosen = min(background, key=self._has_used, default=None)
        if urgent and (chosen is None or self._owed < min(chosen.last_seconds, LONG)):
            chosen = min(urgent, key=self._has_used)
        if chosen is not None:
            self._level = max(self._level, self._has_used(chosen)[0])
        return chosen

    def count(self, job: Account, seconds: float) -> None:
        """Charge a job for the seconds of a turn."""
        job.last_seconds = seconds = max(seconds, SHORTEST)
        job.seconds += seconds
        job.weighted_seconds += seconds / WEIGHT if job.urgency is Urgency.FIRST else seconds
        self._used[job.client] = self._used.get(job.client, self._level) + seconds
        if job.urgency is Urgency.BACKGROUND:
            self._owed = max(0.0, self._owed - seconds)
        else:
            self._owed = min(self._owed + seconds / SHARE, LONG)

    def _has_used(self, job: Account) -> tuple[float, float]:
        return self._used.get(job.client, self._level), job.weighted_seconds
