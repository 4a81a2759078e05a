"""A job: a plain function, of which only one runs at a time, and the events that it emits.

A job's function has the job as its argument. It calls `checkpoint` or `emit` after every half second of work at most,
and may be cancelled there; between two of these calls no other job runs.
"""

from __future__ import annotations

import itertools
import math
import threading
from collections.abc import Callable, Hashable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from enum import Enum
from typing import Any, Generic, NamedTuple, Protocol, TypeVar

from ..limits import BEGINNING_SECONDS

Result = TypeVar("Result")
Path = tuple[Any, ...]  # is it background, has it begun, address, is a result seen, client, number
NUMBERS = itertools.count()


class Cancelled(BaseException):
    """Raised in a job's function when its client has stopped it or has gone, or when its time is over.

    No `Exception`, so that code which handles failures of its own work, the library's included, lets it pass.
    """


class Urgency(Enum):
    """Who waits for a job."""

    PEOPLE = "its client"
    BACKGROUND = "no client"


class Caller(NamedTuple):
    """Who started a job: the network address, "" where it is unknown, and whether they are still connected."""

    address: str = ""
    is_connected: Callable[[], bool] = lambda: True


UNKNOWN = Caller()


class Runner(Protocol):
    """What a job needs of the scheduler."""

    lock: threading.Lock  # of what the scheduler knows of jobs

    def checkpoint(self, job: Job) -> None: ...

    def leave(self, job: Job) -> None: ...

    def come_back(self, job: Job) -> None: ...

    def stop(self, job: Job) -> None: ...

    def begin(self, job: Job, key: Hashable, work: Callable[[Job], Result]) -> Shared[Result]: ...

    def wait(self, job: Job, wait: Wait) -> None: ...

    def end_sharing(self, job: Job, work: SharedWork) -> None: ...

    def hold(self, key: Hashable, count: int) -> None: ...


class Job:
    """A client's work. The first part is for the handler that started it, the second for the work itself."""

    def __init__(
        self,
        scheduler: Runner,
        client: str,
        work: Callable[[Job], Any],
        urgency: Urgency = Urgency.PEOPLE,
        caller: Caller = UNKNOWN,
        max_seconds: float = math.inf,
    ) -> None:
        self.client, self.work, self.urgency, self.max_seconds = client, work, urgency, max_seconds
        self.address, self.is_connected = caller
        self.number = next(NUMBERS)
        self.path: Path = ()  # when its turn was last considered
        self.seconds = 0.0  # of its turns so far
        self.seconds_to_result: float | None = None  # of its turns until its client saw a first result
        self.result: Any = None  # what `work` returned
        self.error: BaseException | None = None
        self.stopped = self.ended = False
        self._scheduler = scheduler
        self._events: list[Any] = []
        self._only_event: Any = None  # replaces every other
        self._changed = threading.Condition()  # of events, `stopped` and `ended`
        self._interrupted = threading.Event()
        # What the scheduler knows of it, under the scheduler's lock.
        self.turn = threading.Condition(scheduler.lock)  # notified when its turn comes
        self.has_begun = False
        self.is_away = False  # without the turn until something outside has happened
        self.wait: Wait | None = None  # for shared work

    def stop(self) -> None:
        """End it at its next checkpoint, unless it has ended."""
        self._scheduler.stop(self)

    def events(self, patience: float | None = None) -> Iterator[list[Any]]:
        """What it emits, as lists of all that came since the last, until it ends. Raises what it failed with.

        Leaving the loop stops the job. A stopped one has no more events, and is not waited for while it is away. With
        `patience`, a list is empty where nothing came for so many seconds.
        """

        def has_news() -> bool:
            return bool(self._events) or self.ended or (self.stopped and self.is_away)

        try:
            while True:
                with self._changed:
                    self._changed.wait_for(has_news, patience)
                    events, self._events = self._events, []
                    is_last = self.ended or self.stopped
                if (events or not is_last) and not self.stopped:
                    yield events
                if is_last:
                    break
            if self.error is not None and not self.stopped:
                raise self.error
        finally:
            self.stop()

    def join(self) -> Any:
        """Wait until it has ended, and return what its function returned. Raises what it failed with."""
        for _ in self.events():
            pass
        return self.result

    @property
    def is_cancelled(self) -> bool:
        """Whether its function is to end at its next checkpoint."""
        return self.stopped or self.error is not None

    @property
    def is_new(self) -> bool:
        """Whether it has only begun, and its client sees no result."""
        return not self.has_result and self.seconds < BEGINNING_SECONDS

    @property
    def has_result(self) -> bool:
        """Whether its client sees a first result."""
        return self.seconds_to_result is not None

    # For the work itself, while it has the turn

    def checkpoint(self) -> None:
        """Let the next job run, and return when it is this job's turn again. Raises Cancelled."""
        self._scheduler.checkpoint(self)

    def emit(self, event: Any) -> None:
        """Deliver an event to the handler that started it; then as `checkpoint`."""
        self.deliver(event)
        self.checkpoint()

    def note_result(self) -> None:
        """Note that its client sees a first result: where many wait, clients who see none come first."""
        if self.seconds_to_result is None:
            self.seconds_to_result = self.seconds

    @contextmanager
    def emitting_only(self, event: Any) -> Iterator[None]:
        """While open, `event` replaces all that is emitted: for details that no client reads."""
        self._only_event = event
        try:
            yield
        finally:
            self._only_event = None

    @contextmanager
    def waiting(self) -> Iterator[None]:
        """While open, others run: for a download, a child process, or what else needs no turn. Raises Cancelled."""
        self.raise_if_cancelled()
        self._scheduler.leave(self)
        try:
            yield
        finally:
            self._scheduler.come_back(self)
        self.raise_if_cancelled()

    def raise_if_cancelled(self) -> None:
        """Raise Cancelled where it is to end; no checkpoint, so that it can be called while `waiting`."""
        if self.is_cancelled:
            raise Cancelled

    def sleep(self, seconds: float) -> None:
        """Let others run for some time. Raises Cancelled at once when it is stopped."""
        with self.waiting():
            self._interrupted.wait(seconds)

    def share(self, key: Hashable, work: Callable[[Job], Result]) -> Result:
        """What the work under `key` returns, run by the first who asks, in the turns of all who wait for it.

        It is a job of its own: `work` gets that as its argument. Its events reach all who wait, and its errors too.
        """
        with self.begin(key, work) as shared:
            return shared.result()

    def begin(self, key: Hashable, work: Callable[[Job], Result]) -> Shared[Result]:
        """As `share`, without waiting. The work goes on in this job's turns while this job waits for it."""
        return self._scheduler.begin(self, key, work)

    @contextmanager
    def holding(self, key: Hashable) -> Iterator[None]:
        """While open, shared work under `key` is not cancelled when no job waits for it."""
        self._scheduler.hold(key, 1)
        try:
            yield
        finally:
            self._scheduler.hold(key, -1)

    # For the scheduler

    def deliver(self, event: Any) -> None:
        """Deliver an event to the handler that started it."""
        with self._changed:
            self._events.append(event if self._only_event is None else self._only_event)
            self._changed.notify_all()

    def interrupt(self) -> None:
        """Wake the handler that waits for its events, and its own sleep, once it is cancelled."""
        self._interrupted.set()
        with self._changed:
            self._changed.notify_all()

    def end(self, result: Any = None, error: BaseException | None = None) -> None:
        """Note how it has ended. Its function is forgotten, with whatever that holds."""
        with self._changed:
            self.result, self.error, self.ended = result, self.error or error, True
            del self.work
            self._changed.notify_all()


class SharedWork(Job):
    """Work that several jobs wait for. It has no turns of its own: they give it theirs; its `seconds` count them."""

    def __init__(self, scheduler: Runner, key: Hashable, work: Callable[[Job], Any]) -> None:
        super().__init__(scheduler, "", work)
        self.key = key
        self.takers: list[Job] = []

    def checkpoint(self) -> None:
        """As of every job; and end the waits whose condition is met."""
        for taker in list(self.takers):
            if taker.wait is not None and taker.wait.work is self:
                taker.wait.is_met = taker.wait.condition()
        super().checkpoint()

    def note_result(self) -> None:
        """Note it for those who wait."""
        for taker in list(self.takers):
            taker.note_result()

    def deliver(self, event: Any) -> None:
        """Deliver an event to the jobs that wait."""
        for taker in list(self.takers):
            taker.deliver(event)


@dataclass(eq=False)
class Wait:
    """A job's wait for shared work: until that has ended, a moment has come, or a condition holds."""

    work: SharedWork
    until_moment: float
    condition: Callable[[], bool]  # called by the work, which has the turn
    is_met: bool = False
    has_given: bool = False  # a turn to the work

    def is_over(self, now: float) -> bool:
        """Whether its job has something else to do than to wait."""
        return self.work.ended or self.is_met or (self.has_given and self.until_moment <= now)


class Shared(Generic[Result], AbstractContextManager["Shared[Result]"]):
    """A job's part in shared work, until the block is left."""

    def __init__(self, scheduler: Runner, job: Job, work: SharedWork, clock: Callable[[], float]) -> None:
        self._scheduler, self._job, self._work, self._clock = scheduler, job, work, clock

    @property
    def done(self) -> bool:
        """Whether the work has ended, well or not."""
        return self._work.ended

    def wait(self, seconds: float = math.inf, until: Callable[[], bool] = lambda: False) -> bool:
        """Give the job's turns to the work, and return whether that has ended.

        With `seconds`, for so long, but for one turn at least, and not while the work is away. With `until`, until that
        is true; it is called at every checkpoint of the work. Raises Cancelled.
        """
        if not self.done and not until():
            self._scheduler.wait(self._job, Wait(self._work, self._clock() + seconds, until))
        return self.done

    def result(self) -> Result:
        """What the work returns, once it has ended. Raises what it failed with, and Cancelled."""
        self.wait()
        if self._work.error is not None:
            raise self._work.error
        return self._work.result

    def __exit__(self, *_: object) -> None:
        self._scheduler.end_sharing(self._job, self._work)
