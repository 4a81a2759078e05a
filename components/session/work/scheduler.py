"""One worker runs everybody's long jobs, a step at a time: what people wait for comes first, and people take turns.

A job is a generator, and what it yields are events for whoever listens. All steps run on one thread, so that they
neither compete for the cores nor need locks. Knows nothing of models, and nothing of the page.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import Counter, OrderedDict
from collections.abc import Callable, Generator, Hashable, Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, TypeVar

log = logging.getLogger(__name__)

Result = TypeVar("Result")

TURNS = 8  # of jobs that people wait for, before one in the background has its own
LONG = 0.5  # seconds of a step that others feel
IDLE = 60.0  # seconds without a job after which the worker ends
REMEMBERED = 10_000  # people whose last turn is known


@dataclass(frozen=True)
class Waiting:
    """Yielded by a job that has nothing to compute for some `seconds`, such as while a file is read."""

    seconds: float = 0.02


PAUSE = Waiting(0.0)  # a step that there is nothing to tell of


class _Background:
    """Yielded by a job once nobody waits for it any more."""


BACKGROUND = _Background()


@dataclass(eq=False)
class Job:
    """Somebody's work, and what it has told so far. Whoever listens no longer calls `stop`, or `listening` says so."""

    visitor: str
    work: Generator[Any, None, Any]
    urgent: bool = True
    listening: Callable[[], bool] = lambda: True
    error: BaseException | None = None
    stopped: bool = False
    ended: bool = False
    _due: float = 0.0
    _served: int = 0
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
    """Everybody's jobs. Without a worker, whoever listens to a job runs the steps until it tells something."""

    def __init__(self, worker: bool = True) -> None:
        self._jobs: list[Job] = []
        self._shared: dict[Hashable, _Shared] = {}
        self._held: Counter[Hashable] = Counter()
        self._served: OrderedDict[str, int] = OrderedDict()  # the last turn of each visitor
        self._turn = self._urgent_turns = 0
        self._changed = threading.Condition()
        self._worker = threading.Thread() if worker else None

    def start(
        self,
        visitor: str,
        work: Generator[Any, None, Any],
        urgent: bool = True,
        listening: Callable[[], bool] = lambda: True,
    ) -> Job:
        """Take on a job of a visitor. One that is not urgent runs in the background of those that are."""
        pump = self.step if self._worker is None else None
        job = Job(visitor, work, urgent, listening, _wake=self._notify, _pump=pump)
        with self._changed:
            self._jobs.append(job)
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
            job = self._next(time.monotonic())
        if job is None:
            return False
        if job.stopped or not job.listening():
            job.stopped = True
            self._close(job)
            return True
        start = time.monotonic()
        try:
            event = next(job.work)
        except StopIteration:
            self._close(job)
        except BaseException as error:  # whoever listens is told; the others' work goes on
            self._close(job, error)
        else:
            if isinstance(event, Waiting):
                job._due = time.monotonic() + event.seconds
            elif event is BACKGROUND:
                job.urgent = False
            else:
                job._tell(event)
        if (spent := time.monotonic() - start) > LONG:
            log.info("a step of %s took %.2f s", job.work.__qualname__, spent)
        return True

    def _next(self, now: float) -> Job | None:
        """Whose turn it is: what is to be ended, else by urgency, visitor, and the visitor's own jobs in turn."""
        if ending := next((job for job in self._jobs if job.stopped), None):
            return ending
        due = [job for job in self._jobs if job._due <= now]
        urgent = [job for job in due if job.urgent]
        background = [job for job in due if not job.urgent]
        chosen = background if not urgent or (background and self._urgent_turns >= TURNS) else urgent
        if not chosen:
            return None
        job = min(chosen, key=lambda job: (self._served.get(job.visitor, 0), job._served))
        self._turn += 1
        self._urgent_turns = self._urgent_turns + 1 if job.urgent else 0
        self._served[job.visitor] = job._served = self._turn
        self._served.move_to_end(job.visitor)
        if len(self._served) > REMEMBERED:
            self._served.popitem(last=False)
        return job

    def _close(self, job: Job, error: BaseException | None = None) -> None:
        with self._changed:
            self._jobs.remove(job)
        job._end(error)

    def _notify(self) -> None:
        with self._changed:
            self._changed.notify_all()

    def _run(self) -> None:
        while True:
            if self.step():
                continue
            with self._changed:
                if not self._jobs and not self._changed.wait_for(lambda: self._jobs, IDLE):
                    self._worker = threading.Thread()
                    return
                due = min((job._due for job in self._jobs), default=0.0)
                if not any(job.stopped for job in self._jobs):
                    self._changed.wait(max(0.0, due - time.monotonic()))


def aside(function: Callable[[], Result]) -> Generator[Waiting, None, Result]:
    """What `function` returns, called in a thread of its own: for what waits for a network or a disk."""
    future: Future[Result] = Future()

    def call() -> None:
        try:
            future.set_result(function())
        except BaseException as error:
            future.set_exception(error)

    threading.Thread(target=call, daemon=True).start()
    while not future.done():
        yield Waiting()
    return future.result()
