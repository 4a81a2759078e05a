"""Generators as jobs, while the tabs are converted to plain functions: what they yield are events and pauses."""

from __future__ import annotations

import math
import threading
import time
from collections import Counter
from collections.abc import Callable, Generator, Hashable, Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, TypeVar

from components.jobs import status
from components.jobs.job import Job
from components.jobs.status import Status
from components.jobs.turns import Urgency
from intraslice.core.progress import Progress

T = TypeVar("T")
Result = TypeVar("Result")


@dataclass(frozen=True)
class Waiting:
    """Yielded by a job that has nothing to compute for some `seconds`."""

    seconds: float = 0.02


PAUSE = Waiting(0.0)  # a step that there is nothing to tell of


def run_generator(job: Job, generator: Generator[Any, None, Result]) -> Result:
    """Run a generator to its end in a job's turns, and return its value."""
    try:
        while True:
            try:
                event = next(generator)
            except StopIteration as end:
                return end.value
            if isinstance(event, Waiting):
                job.sleep(event.seconds) if event.seconds else job.checkpoint()
            elif isinstance(event, Urgency):
                job.urgency = event
                job.checkpoint()
            else:
                job.emit(event)
    finally:
        generator.close()


@dataclass
class _Shared:
    """Work that several jobs wait for. Whichever has a turn moves it on."""

    work: Generator[Any, None, Any]
    takers: int = 0
    done: bool = False
    result: Any = None
    error: BaseException | None = None


class SharedGenerators:
    """Generators that several jobs wait for."""

    def __init__(self) -> None:
        self._shared: dict[Hashable, _Shared] = {}
        self._held: Counter[Hashable] = Counter()

    def share(self, key: Hashable, make: Callable[[], Generator[Any, None, Result]]) -> Generator[Any, None, Result]:
        """The result of the work under `key`, made by the first who asks: a step of a job, never outside of one."""
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
        if shared.done or not (shared.takers or self._held[key]):
            shared.work.close()
            if self._shared.get(key) is shared:
                del self._shared[key]
        self._held += Counter()


def statuses(job: Generator[Progress, None, T], text: str, when_done: bool = False) -> Generator[Any, None, T]:
    """A library generator's progress as statuses, as `job_progress` has them."""
    start, moment, done = time.monotonic(), -math.inf, -1
    while True:
        try:
            event = next(job)
        except StopIteration as stop:
            return stop.value
        if event.done == done if when_done else time.monotonic() < moment + status.EVERY:
            yield PAUSE
            continue
        moment, done = time.monotonic(), event.done
        spent = moment - start
        left = spent / event.done * (event.total - event.done) if event.done else None
        yield Status(text, "busy", event.done, event.total, left)


def aside(function: Callable[[], Result]) -> Generator[Waiting, None, Result]:
    """What `function` returns, called in a thread of its own; a step of a job."""
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
