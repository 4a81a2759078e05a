"""Schedulers whose jobs go on only when a test says so. What decides who comes next is the scheduler's own."""

import threading
import time
from collections.abc import Callable, Hashable, Iterator
from typing import Any

import pytest

from components.jobs.job import Job, Scheduler
from components.jobs.round_robin import Turns

PATIENCE = 30.0  # seconds, after which a test fails that would wait for ever


def until(condition: Callable[[], Any], seconds: float = 120.0) -> None:
    """Wait for what another thread does; fail where it does not come."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "in vain"
        time.sleep(0.01)


class Failed(Exception):
    """What jobs of tests fail with on purpose."""


class Panic(BaseException):
    """As tokenizers raise it; its real name is `pyo3_runtime.PanicException`."""


class Clock:
    """Stands still but while a turn says that it takes its time."""

    now = 0.0

    def __call__(self):
        return self.now


class Stepped(Scheduler):
    """Gives one turn at a time, from one checkpoint to the next, at every `step`; a short turn has `seconds`."""

    def __init__(self, clock: Callable[[], float] = time.monotonic, seconds: float = 0.0) -> None:
        super().__init__(clock=clock)
        self._turns = Turns(seconds)
        self._may_give = False
        self._passed = threading.Condition(self.lock)

    def step(self) -> bool:
        """Let the job whose turn it is run until its next checkpoint; returns whether there was one."""
        with self.lock:
            self._may_give = True
            self.pass_on()
            self._may_give = False
            is_given = self._runner is not None
            assert self._passed.wait_for(lambda: self._runner is None, PATIENCE)
        return is_given

    def run(self) -> None:
        """Step until nobody wants a turn."""
        while self.step():
            pass

    def until(self, condition: Callable[[], bool]) -> None:
        """Wait for what a job does without a turn."""
        with self.lock:
            assert self._passed.wait_for(condition, PATIENCE)

    def _choose(self) -> tuple[Job | None, Job | None]:
        return super()._choose() if self._may_give else (None, None)

    def pass_on(self) -> None:
        super().pass_on()
        self._passed.notify_all()


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def scheduler(clock: Clock) -> Stepped:
    return Stepped(clock)


def counting(
    log: list[Hashable], name: Hashable, steps: int, clock: Clock | None = None, seconds: float = 0.0, result: int = -1
) -> Callable[[Job], int]:
    """A job that writes its name to the log in every turn. Its client sees a first result after step `result`."""

    def work(job: Job) -> int:
        for step in range(steps):
            if step == result:
                job.note_result()
            log.append(name)
            if clock:
                clock.now += seconds
            job.emit(step)
        return steps

    return work


def events(job: Job) -> list[Any]:
    """All that a job has emitted."""
    return [event for news in job.events() for event in news]


class AwaitedJob(Job):
    """Knows whether somebody waits for its next event."""

    is_awaited = False

    def events(self, patience: float | None = None) -> Iterator[list[Any]]:
        events = super().events()  # a test's machine may be slow
        try:
            while True:
                with self._changed:
                    self.is_awaited = not (self._events or self.ended)
                self.scheduler.wake()
                try:
                    news = next(events)
                except StopIteration:
                    return
                yield news
        finally:
            self.is_awaited = False
            events.close()

    def deliver(self, event: Any) -> None:
        with self._changed:
            self.is_awaited = False
            super().deliver(event)

    def end(self, *outcome: Any) -> None:
        with self._changed:
            self.is_awaited = False
            super().end(*outcome)


class OnlyWhileAwaited(Scheduler):
    """Gives turns only while somebody waits for an event of any job, so that a test sees the state after every one.

    A turn is one step, however short."""

    job_class = AwaitedJob

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        super().__init__(clock=clock)
        self._turns = Turns(0.0)

    def wake(self) -> None:
        with self.lock:
            self.pass_on()

    def _choose(self) -> tuple[Job | None, Job | None]:
        jobs = [job for job in (*self.jobs, *self._cancelled) if not job.is_away]
        wanted = any(job.is_cancelled for job in jobs) or any(job.is_awaited for job in self.jobs)
        return super()._choose() if wanted else (None, None)
