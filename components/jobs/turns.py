"""Fair shares of used seconds: jobs that somebody waits for come before background jobs. Knows no threads.

Shares are fair first among network addresses, then among the clients of an address, then among the jobs of a client. A
new client starts with the use of the client that was scheduled last, so that it cannot take all turns.

Where many clients wait, short turns would let everybody wait for the sum of all work, and the next move of the slider
would cancel most of it. There a client keeps the turn for some seconds, and of an address's clients those come
first who do not see a result yet, and of these those that wait for the same as others.
"""

from __future__ import annotations

from collections import Counter, OrderedDict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from enum import Enum
from typing import TypeVar

SHARE = 8  # seconds of what people wait for, to one of the background beside it
WEIGHT = 4  # times as many of a client's seconds go to a job that comes first
LONG = 0.5  # seconds of a turn that others notice
SHORTEST = 1e-4  # seconds that a turn counts at least
FEW = 4  # addresses, or clients of one, that take short turns; where more wait a client keeps the turn
KEPT = 10.0  # seconds for which it is kept: a slice and its first number, on a busy machine too
KEPT_SEEN = 30.0  # likewise, of a client that sees a result: the rest of an answer
SHARED = 1.0  # seconds of use by which a client comes sooner for each of at most FEW others that wait for the same work
SHARED_SECONDS = 5.0  # first seconds of the work for which it does so: a slice and its first number, likewise
SEEN_SHARE = 9  # seconds of work whose client sees no result yet, to one of work whose client does
SOON = 1.0  # first seconds of a job of the urgency FIRST, which come before all others: the first token of an answer
BRIEF = 0.02  # first seconds of any other job, which do so too: what is cached does not wait in line
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
    seconds_to_result: float | None = None  # of its turns until its client saw a first result
    to_seen: float = 0.0  # what each second of its turn adds to the debt to jobs whose clients see a result

    @property
    def has_result(self) -> bool:
        """Whether its client sees a first result."""
        return self.seconds_to_result is not None

    @property
    def sharers(self) -> int:
        """How many clients, with this one, wait for the same work that has just begun."""
        return 1


Key = tuple[str, str]
AnAccount = TypeVar("AnAccount", bound=Account)


class Turns:
    """What everybody has used, and who comes next."""

    def __init__(self) -> None:
        # Seconds of each ("address", name) and ("client", name), and of those whose turn was the last.
        self._used: OrderedDict[Key, float] = OrderedDict()
        self._level = dict.fromkeys(("address", "client"), 0.0)  # nobody begins with less
        self._owed = 0.0  # seconds to the background; negative where that has taken more than its share
        self._owed_to_seen: dict[Key, float] = {}  # by address: likewise, to jobs whose clients see a result
        # Who keeps the turn, of those who see a result and of the others: turns in between do not take it away.
        self._keeps: dict[bool, tuple[Key, ...]] = {True: (), False: ()}

    def admit(self, job: Account, others: Iterable[Account]) -> None:
        """Let a new job take part beside the `others` that have not ended."""
        of_client = [other.weighted_seconds for other in others if other.client == job.client]
        job.weighted_seconds = min(of_client, default=0.0)
        for key in _keys(job):
            self._used[key] = max(self._used.get(key, 0.0), self._level[key[0]])
            self._used.move_to_end(key)
        while len(self._used) > REMEMBERED:
            self._owed_to_seen.pop(self._used.popitem(last=False)[0], None)

    def choose(self, jobs: Sequence[AnAccount]) -> AnAccount | None:
        """Which of the jobs comes next: by urgency, then by the least use of its address, its client, and itself."""
        urgent = [job for job in jobs if job.urgency is not Urgency.BACKGROUND]
        background = [job for job in jobs if job.urgency is Urgency.BACKGROUND]
        chosen = min(background, key=self._has_used, default=None)
        if urgent and (chosen is None or self._owed < min(chosen.last_seconds, LONG)):
            chosen = self._choose_urgent(urgent)
        if chosen is not None:
            if chosen.urgency is not Urgency.BACKGROUND and not _is_soon(chosen):
                self._keeps[chosen.has_result] = _keys(chosen)
            for (kind, _), used in zip(_keys(chosen), self._has_used(chosen), strict=False):
                self._level[kind] = max(self._level[kind], used)
        return chosen

    def in_order(self, jobs: Sequence[AnAccount]) -> list[AnAccount]:
        """The jobs in the order in which they come as things are now."""
        urgent = [job for job in jobs if job.urgency is not Urgency.BACKGROUND]
        background = [job for job in jobs if job.urgency is Urgency.BACKGROUND]
        return [*sorted(urgent, key=self._rank_among(urgent)), *sorted(background, key=self._has_used)]

    def _choose_urgent(self, jobs: Sequence[AnAccount]) -> AnAccount:
        rank = self._rank_among(jobs)
        chosen = min(jobs, key=rank)
        address = _keys(chosen)[0]
        beside = [job for job in jobs if _keys(job)[0] == address]
        seen = [] if chosen.has_result or not _is_crowd(beside) else [job for job in beside if job.has_result]
        if seen:
            is_owed = self._owed_to_seen.get(address, 0.0) >= min(min(job.last_seconds for job in seen), LONG)
            chosen = min(seen, key=rank) if is_owed else chosen
            chosen.to_seen = -1.0 if is_owed else 1 / SEEN_SHARE
        return chosen

    def _rank_among(self, jobs: Sequence[Account]) -> Callable[[Account], tuple[float, ...]]:
        """The order: by the use of the address, there by who sees no result yet, then by the use of client and job."""
        if not _is_crowd(jobs):
            return self._has_used
        of_address = Counter(address for address, _ in {_keys(job) for job in jobs})

        def rank(job: Account) -> tuple[float, ...]:
            address, client = _keys(job)
            is_crowd, keeps = of_address[address] > FEW, self._keeps[job.has_result]
            comes_later = (job.has_result, not _is_soon(job)) if is_crowd else (False, False)
            kept = KEPT_SEEN if job.has_result else KEPT
            comes_sooner = (kept if client in keeps else 0) + SHARED * min(job.sharers - 1, FEW) if is_crowd else 0
            return (
                self._use(address) - (KEPT if len(of_address) > FEW and address in keeps else 0),
                *comes_later,
                self._use(client) - comes_sooner,
                job.weighted_seconds,
            )

        return rank

    def _use(self, key: Key) -> float:
        """Seconds that an address or a client has used."""
        return self._used.get(key, self._level[key[0]])

    def count(self, job: Account, seconds: float) -> None:
        """Charge a job for the seconds of a turn."""
        job.last_seconds = seconds = max(seconds, SHORTEST)
        job.seconds += seconds
        job.weighted_seconds += seconds / WEIGHT if job.urgency is Urgency.FIRST else seconds
        for key in _keys(job):
            self._used[key] = self._used.get(key, self._level[key[0]]) + seconds
        if job.urgency is Urgency.BACKGROUND:
            self._owed = max(-LONG, self._owed - seconds)
        else:
            self._owed = min(self._owed + seconds / SHARE, LONG)
            address = _keys(job)[0]
            owed = self._owed_to_seen.get(address, 0.0) + seconds * job.to_seen
            self._owed_to_seen[address] = max(-LONG, min(owed, LONG))
        job.to_seen = 0.0

    def _has_used(self, job: Account) -> tuple[float, float, float]:
        of_address, of_client = map(self._use, _keys(job))
        return of_address, of_client, job.weighted_seconds


def _is_crowd(jobs: Sequence[Account]) -> bool:
    return len({_keys(job) for job in jobs}) > FEW


def _is_soon(job: Account) -> bool:
    return job.seconds < (SOON if job.urgency is Urgency.FIRST else BRIEF)


def _keys(job: Account) -> tuple[Key, Key]:
    return ("address", job.address or f"of {job.client}"), ("client", job.client)
