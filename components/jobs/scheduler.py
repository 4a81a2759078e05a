"""One worker runs everybody's long jobs, a step at a time: what people wait for comes first, and people take turns.

A job is a generator, and what it yields are events for whoever listens. All steps run on one thread, so that they
neither compete for the cores nor need locks. Knows nothing of models, and nothing of the page.
"""

from __future__ import annotations

import logging
import math
import os
import sys
import threading
import time
from collections import Counter, OrderedDict
from collections.abc import Callable, Generator, Hashable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from enum import Enum
from typing import Any, TypeVar

from components.i18n.language import later

log = logging.getLogger(__name__)

Result = TypeVar("Result")

SHARE = 8  # seconds of what people wait for, to one of the background beside it
WEIGHT = 4  # times as much of a visitor's turns goes to a job that comes first
LONG = 0.5  # seconds of a step that others feel
IDLE = 60.0  # seconds without a job after which the worker ends
NICE = 5  # to whoever only wants to see a slider move
REMEMBERED = 10_000  # people whose use is known
LEAST = 1e-4  # seconds that a step counts, however short


@dataclass(frozen=True)
class Waiting:
    """Yielded by a job that has nothing to compute for some `seconds`, such as while a file is read."""

    seconds: float = 0.02


PAUSE = Waiting(0.0)  # a step that there is nothing to tell of


class Urgency(Enum):
    """How much somebody waits for a job. Yielded by one for which that changes."""

    FIRST = "what its visitor asked for last"
    USUAL = "what its visitor looks at"
    BACKGROUND = "nobody waits for it"


@dataclass(eq=False)
class Job:
    """Somebody's work, and what it has told so far. Whoever listens no longer calls `stop`, or `listening` says so."""

    visitor: str
    work: Generator[Any, None, Any]
    urgency: Urgency = Urgency.USUAL
    listening: Callable[[], bool] = lambda: True
    most: float = math.inf  # seconds of its own steps
    error: BaseException | None = None
    stopped: bool = False
    ended: bool = False
    seconds: float = 0.0  # of its own steps so far
    _due: float = 0.0
    _used: float = 0.0  # seconds, by weight
    _last: float = LONG  # seconds of its last step
    _events: list[Any] = field(default_factory=list)
    _changed: threading.Condition = field(default_factory=threading.Condition)
    _wake: Callable[[], None] = lambda: None
    _pump: Callable[[], bool] | None = None  # where there is no worker, whoever listens runs the steps

    def stop(self) -> None:
        """End it at its next step, unless it has ended."""
        if not self.ended:
            self.stopped = True
            self._wake()

    def news(self) -> Iterator[list[Any]]:
        """What it tells, as lists of all that came since the last, until it ends. Raises what it failed with.

        Leaving the loop stops the job.
        """
        try:
            while True:
                while self._pump and not (self._events or self.ended):
                    self._pump()
                with self._changed:
                    self._changed.wait_for(lambda: self._events or self.ended)
                    events, self._events = self._events, []
                    last = self.ended
                if events and not self.stopped:
                    yield events
                if last:
                    break
            if self.error is not None and not self.stopped:
                raise self.error
        finally:
            self.stop()

    def _tell(self, event: Any) -> None:
        with self._changed:
            self._events.append(event)
            self._changed.notify_all()

    def _end(self, error: BaseException | None = None) -> None:
        try:
            self.work.close()
        except BaseException as problem:  # in what it does to tidy up
            error = error or problem
        with self._changed:
            self.error, self.ended = error, True
            self._changed.notify_all()


@dataclass
class _Shared:
    """Work that several jobs wait for. Whichever has a turn moves it on."""

    work: Generator[Any, None, Any]
    takers: int = 0
    done: bool = False
    result: Any = None
    error: BaseException | None = None


class Scheduler:
    """Everybody's jobs. Without a worker, whoever listens to a job runs the steps until it tells something.

    Turns are fair by the seconds that steps take, first among visitors, then among a visitor's own jobs.
    """

    def __init__(self, worker: bool = True, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self.jobs: list[Job] = []  # that have not ended
        self._shared: dict[Hashable, _Shared] = {}
        self._held: Counter[Hashable] = Counter()
        self._used: OrderedDict[str, float] = OrderedDict()  # seconds of each visitor
        self._level = 0.0  # what the visitor had used whose turn was the last: nobody begins with less
        self._owed = 0.0  # seconds to the background
        self._changed = threading.Condition()
        self._worker = threading.Thread() if worker else None

    def start(
        self,
        visitor: str,
        work: Generator[Any, None, Any],
        urgency: Urgency = Urgency.USUAL,
        listening: Callable[[], bool] = lambda: True,
        most: float = math.inf,
    ) -> Job:
        """Take on a job of a visitor, which ends in a TimeoutError after its steps took `most` seconds."""
        pump = self.step if self._worker is None else None
        job = Job(visitor, work, urgency, listening, most, _wake=self._notify, _pump=pump)
        with self._changed:
            job._used = min((other._used for other in self.jobs if other.visitor == visitor), default=0.0)
            self._used[visitor] = max(self._used.get(visitor, 0.0), self._level)
            self._used.move_to_end(visitor)
            if len(self._used) > REMEMBERED:
                self._used.popitem(last=False)
            self.jobs.append(job)
            if self._worker is not None and not self._worker.is_alive():
                self._worker = threading.Thread(target=self._run, name="jobs", daemon=True)
                self._worker.start()
            self._changed.notify_all()
        return job

    def share(self, key: Hashable, make: Callable[[], Generator[Any, None, Result]]) -> Generator[Any, None, Result]:
        """The result of the work under `key`, made by the first who asks: a step of a job, never outside of one.

        Every job that asks moves the same work on with its own turns. What nobody asks for any more is dropped.
        """
        shared = self._shared.get(key)
        if shared is None:
            shared = self._shared[key] = _Shared(make())
        shared.takers += 1
        try:
            while not shared.done:
                try:
                    event = next(shared.work)
                except StopIteration as end:
                    shared.done, shared.result = True, end.value
                except BaseException as error:
                    shared.done, shared.error = True, error
                else:
                    yield event
            if shared.error is not None:
                raise shared.error
            return shared.result
        finally:
            shared.takers -= 1
            self._drop(key, shared)

    @contextmanager
    def holding(self, key: Hashable) -> Iterator[None]:
        """While open, the work under `key` waits where it is when nobody moves it on. For a step of a job."""
        self._held[key] += 1
        try:
            yield
        finally:
            self._held[key] -= 1
            if shared := self._shared.get(key):
                self._drop(key, shared)

    def _drop(self, key: Hashable, shared: _Shared) -> None:
        """Forget work that is done, or wanted by nobody."""
        if shared.done or not (shared.takers or self._held[key]):
            shared.work.close()
            if self._shared.get(key) is shared:
                del self._shared[key]
        self._held += Counter()  # without those that nobody holds

    def step(self) -> bool:
        """Run one step of the job whose turn it is; returns whether there was one."""
        with self._changed:
            job = self._next(self._clock())
        if job is None:
            return False
        if job.stopped or not job.listening():
            job.stopped = True
            self._close(job)
            return True
        start = self._clock()
        try:
            event = next(job.work)
        except StopIteration:
            self._close(job)
        except BaseException as error:  # whoever listens is told; the others' work goes on
            self._close(job, error)
        else:
            if isinstance(event, Waiting):
                job._due = self._clock() + event.seconds
            elif isinstance(event, Urgency):
                job.urgency = event
            else:
                job._tell(event)
        self._count(job, self._clock() - start)
        if job.seconds > job.most and not job.ended:
            words = later("this took {seconds:,.0f} seconds, which is all there is; ask for less", seconds=job.seconds)
            self._close(job, TimeoutError(words))
        return True

    def _next(self, now: float) -> Job | None:
        """Whose turn it is: what is to be ended, else by urgency, and who has used least, visitors before jobs."""
        if ending := next((job for job in self.jobs if job.stopped), None):
            return ending
        due = [job for job in self.jobs if job._due <= now]
        waited_for = [job for job in due if job.urgency is not Urgency.BACKGROUND]
        background = [job for job in due if job.urgency is Urgency.BACKGROUND]
        turn = min(background, key=self._has_used, default=None)
        if waited_for and (turn is None or self._owed < min(turn._last, LONG)):
            turn = min(waited_for, key=self._has_used)
        if turn is not None:
            self._level = max(self._level, self._has_used(turn)[0])
        return turn

    def _has_used(self, job: Job) -> tuple[float, float]:
        return self._used.get(job.visitor, self._level), job._used

    def _count(self, job: Job, seconds: float) -> None:
        """Note what a step took."""
        if seconds > LONG:
            log.info("a step of %s took %.2f s", job.work.__qualname__, seconds)
        job._last = seconds = max(seconds, LEAST)
        job.seconds += seconds
        job._used += seconds / WEIGHT if job.urgency is Urgency.FIRST else seconds
        self._used[job.visitor] = self._used.get(job.visitor, self._level) + seconds
        if job.urgency is Urgency.BACKGROUND:
            self._owed = max(0.0, self._owed - seconds)
        else:
            self._owed = min(self._owed + seconds / SHARE, LONG)

    def _close(self, job: Job, error: BaseException | None = None) -> None:
        with self._changed:
            self.jobs.remove(job)
        job._end(error)

    def _notify(self) -> None:
        with self._changed:
            self._changed.notify_all()

    def _run(self) -> None:
        if sys.platform == "linux":  # where a thread has a niceness of its own, which those that it starts share
            os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), NICE)
        while True:
            if self.step():
                continue
            with self._changed:
                if not self.jobs and not self._changed.wait_for(lambda: self.jobs, IDLE):
                    self._worker = threading.Thread()
                    return
                due = min((job._due for job in self.jobs), default=0.0)
                if not any(job.stopped for job in self.jobs):
                    self._changed.wait(max(0.0, due - time.monotonic()))
