"""Jobs: plain functions, each in a thread of a pool, of which one runs at a time; and the scheduler that runs them.

A job's function has the job as its argument. It calls `checkpoint` or `emit` after every half second of work at most,
and may be cancelled there; between two of these calls no other job runs. So jobs neither compete for the cores nor need
locks among each other; only the few layers that a slice has begun end in another job's turn. `round_robin.py` says who
comes next. No lock is held while a job's function runs. Knows nothing of models, and nothing of the page.
"""

from __future__ import annotations

import itertools
import logging
import math
import threading
import time
from collections import Counter
from collections.abc import Callable, Hashable, Iterable, Iterator
from contextlib import contextmanager
from enum import Enum
from functools import partial
from typing import Any, Generic, NamedTuple, TypeVar

from ..i18n.language import lazy_gettext
from ..limits import BEGINNING_SECONDS, FEW, NOTICED_SECONDS
from .round_robin import Path, Turns
from .threads import ThreadPool, forget_frames

log = logging.getLogger(__name__)
Result = TypeVar("Result")
NUMBERS = itertools.count()
TOO_LONG = "This job reached its limit of {seconds:,.0f} seconds. Choose a smaller model, or measure less at once."


class Cancelled(BaseException):
    """Raised in a job's function that is to end. No `Exception`, so that handlers of failures let it pass."""


class Urgency(Enum):
    """Who waits for a job."""

    PEOPLE = "its client"
    BACKGROUND = "no client"


class Caller(NamedTuple):
    """Who started a job: the network address, "" where it is unknown, and whether they are still connected."""

    address: str = ""
    is_connected: Callable[[], bool] = lambda: True


class Job:
    """A client's work. The first part is for the handler that started it, the second for the work itself."""

    def __init__(
        self,
        scheduler: Scheduler,
        client: str,
        work: Callable[[Job], Any],
        urgency: Urgency = Urgency.PEOPLE,
        caller: Caller | None = None,
        max_seconds: float = math.inf,
    ) -> None:
        self.client, self.work, self.urgency, self.max_seconds = client, work, urgency, max_seconds
        self.address, self.is_connected = caller or Caller()
        self.scheduler, self.number = scheduler, next(NUMBERS)
        self.kind = ""  # as its client may have one of each
        self.path: Path = ()  # when its turn was last considered
        self.seconds = 0.0  # of its turns so far
        self.seconds_to_result: float | None = None  # of its turns until its client saw a first result
        self.result: Any = None  # what `work` returned
        self.error: BaseException | None = None
        self.stopped = self.ended = False
        self._events: list[Any] = []
        self.only_event: Any = None  # replaces every other, while it is set: for details that no client reads
        self._changed = threading.Condition()  # of events, `stopped` and `ended`
        # What the scheduler knows of it, under the scheduler's lock.
        self.turn = threading.Condition(scheduler.lock)  # notified when its turn comes
        self.has_begun = False
        self.is_away = False  # without the turn until something outside has happened
        self.wait: Shared[Any] | None = None  # for shared work

    def stop(self) -> None:
        """End it at its next checkpoint, unless it has ended."""
        with self.scheduler.lock:
            if self.ended or self.stopped:
                return
            self.stopped = True
            if not self.has_begun:
                self.scheduler.jobs.remove(self)
                self.end()
            self.scheduler.pass_on()
        self.interrupt()

    def events(self, patience: float | None = None) -> Iterator[list[Any]]:
        """What it emits, as lists of all that came since the last, until it ends. Raises what it failed with.

        Leaving the loop stops the job. A stopped one has no more events, and is not waited for while it is away. With
        `patience`, a list is empty where nothing came for so many seconds.
        """
        try:
            while True:
                with self._changed:
                    self._changed.wait_for(
                        lambda: self._events or self.ended or (self.stopped and self.is_away), patience
                    )
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
    def has_result(self) -> bool:
        """Whether its client sees a first result."""
        return self.seconds_to_result is not None

    # For the work itself, while it has the turn

    def checkpoint(self) -> None:
        """Let the next job run, and return when it is this job's turn again. Raises Cancelled."""
        with self.scheduler.lock:
            self.scheduler.give_up(self)
            self.scheduler.acquire(self)
        self.scheduler.raise_if_cancelled(self)

    def emit(self, event: Any) -> None:
        """Deliver an event to the handler that started it; then as `checkpoint`."""
        self.deliver(event)
        self.checkpoint()

    def note_result(self) -> None:
        """Note that its client sees a first result: where many wait, clients who see none come first."""
        if self.seconds_to_result is None:
            self.seconds_to_result = self.seconds

    @contextmanager
    def waiting(self) -> Iterator[None]:
        """While open, others run: for a download, a child process, or what else needs no turn. Raises Cancelled."""
        self.raise_if_cancelled()
        with self.scheduler.lock:
            self.scheduler.give_up(self, is_away=True)
        try:
            yield
        finally:
            with self.scheduler.lock:
                self.is_away = False
                self.scheduler.pass_on()
                self.scheduler.acquire(self)
        self.raise_if_cancelled()

    def raise_if_cancelled(self) -> None:
        """Raise Cancelled where it is to end; no checkpoint, so that it can be called while `waiting`."""
        if self.is_cancelled:
            raise Cancelled

    def sleep(self, seconds: float) -> None:
        """Let others run for some time. Raises Cancelled at once when it is stopped."""
        with self.waiting(), self._changed:
            self._changed.wait_for(lambda: self.is_cancelled, seconds)

    def share(self, key: Hashable, work: Callable[[Job], Result]) -> Result:
        """What the work under `key` returns, run by the first who asks, in the turns of all who wait for it.

        It is a job of its own: `work` gets that as its argument. Its events reach all who wait, and its errors too.
        """
        with self.begin(key, work) as shared:
            return shared.result()

    @contextmanager
    def begin(self, key: Hashable, work: Callable[[Job], Result]) -> Iterator[Shared[Result]]:
        """As `share`, without waiting. The work goes on in this job's turns while this job waits for it."""
        with self.scheduler.lock:
            shared = self.scheduler._shared.get(key)
            if shared is None or shared.ended:  # other jobs may still use the result of work that has ended
                shared = self.scheduler._shared[key] = SharedWork(self.scheduler, key, work)
            shared.takers.append(self)
        try:
            yield Shared(self, shared)
        finally:
            with self.scheduler.lock:
                shared.takers.remove(self)
                self.scheduler.drop(shared)

    @contextmanager
    def holding(self, key: Hashable) -> Iterator[None]:
        """While open, shared work under `key` is not cancelled when no job waits for it."""
        with self.scheduler.lock:
            self.scheduler._held[key] += 1
        try:
            yield
        finally:
            with self.scheduler.lock:
                self.scheduler._held[key] -= 1
                self.scheduler._held += Counter()  # without those that no job holds
                if work := self.scheduler._shared.get(key):
                    self.scheduler.drop(work)

    # For the scheduler

    def deliver(self, event: Any) -> None:
        """Deliver an event to the handler that started it."""
        with self._changed:
            self._events.append(event if self.only_event is None else self.only_event)
            self._changed.notify_all()

    def interrupt(self) -> None:
        """Wake the handler that waits for its events, and its own sleep, once it is cancelled."""
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

    def __init__(self, scheduler: Scheduler, key: Hashable, work: Callable[[Job], Any]) -> None:
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


class Shared(Generic[Result]):
    """A job's part in shared work: the job waits until the work has ended, or less long."""

    def __init__(self, job: Job, work: SharedWork) -> None:
        self.job, self.work, self._scheduler = job, work, job.scheduler

    def wait(self, seconds: float = math.inf, until: Callable[[], bool] = lambda: False) -> bool:
        """Give the job's turns to the work, and return whether that has ended, well or not.

        With `seconds`, for so long, but for one turn at least, and not while the work is away. With `until`, until that
        is true; it is called at every checkpoint of the work. Raises Cancelled.
        """
        if not self.work.ended and not until():
            self.until_moment, self.condition = self._scheduler.clock() + seconds, until
            self.is_met = self.has_given = False  # the condition; a turn to the work
            with self._scheduler.lock:
                self.job.wait = self
                self._scheduler.give_up(self.job)
                self._scheduler.acquire(self.job)
                self.job.wait = None
            self._scheduler.raise_if_cancelled(self.job)
        return self.work.ended

    def is_over(self, now: float) -> bool:
        """Whether the job has something else to do than to wait."""
        return self.work.ended or self.is_met or (self.has_given and self.until_moment <= now)

    def result(self) -> Result:
        """What the work returns, once it has ended. Raises what it failed with, and Cancelled."""
        self.wait()
        if self.work.error is not None:
            raise self.work.error
        return self.work.result


class Scheduler:
    """The jobs of all clients. Every thread that runs jobs first calls `initialise`."""

    job_class: type[Job] = Job

    def __init__(
        self, initialise: Callable[[], None] = lambda: None, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self.lock = threading.Lock()  # of everything below, and of the jobs' states
        self.jobs: list[Job] = []  # that have not ended, without shared work
        self.clock = clock
        self._turns = Turns()
        self._threads = ThreadPool(initialise)
        self._shared: dict[Hashable, SharedWork] = {}
        self._held: Counter[Hashable] = Counter()
        self._cancelled: list[SharedWork] = []  # for which no job waits any more, and that has not ended
        # The turn: the job whose function runs, the job that is charged for it, and since when.
        self._runner: Job | None = None
        self._payer: Job | None = None
        self._since = 0.0

    def start(
        self,
        client: str,
        work: Callable[[Job], Any],
        urgency: Urgency = Urgency.PEOPLE,
        caller: Caller | None = None,
        max_seconds: float = math.inf,
    ) -> Job:
        """Take on a job of a client. It ends in a TimeoutError after `max_seconds` of its own turns."""
        job = self.job_class(self, client, work, urgency, caller, max_seconds)
        with self.lock:
            self.jobs.append(job)
            self.pass_on()
        return job

    def line(self) -> list[Job]:
        """The jobs that want a turn, in the order in which they get it as things are now; first who has it."""
        with self.lock:
            now, payer = self.clock(), self._payer if self._runner is not None else None
            wanting = [job for job in self.jobs if self._runner_for(job, now) is not None and job is not payer]
            has_turn = [payer] if payer in self.jobs else []
            paths = _paths(wanting)
            return [*has_turn, *(paths[path] for path in self._turns.in_order(paths))]

    @property
    def step_seconds(self) -> float:
        """Seconds for which the job that has the turn has not given it up; 0.0 where none has it."""
        with self.lock:
            return 0.0 if self._runner is None else self.clock() - self._since

    # All of these are called with the lock held

    def give_up(self, job: Job, is_away: bool = False) -> None:
        """Charge a job for its turn, and pass that on."""
        if self._runner is not job:
            raise RuntimeError("only the job whose turn it is may give it up")
        self._charge(job)
        payer = self._payer
        if payer is not None and payer.seconds > payer.max_seconds and not payer.is_cancelled:
            payer.error = TimeoutError(lazy_gettext(TOO_LONG, seconds=payer.seconds))
        job.is_away, self._runner = is_away, None
        self.pass_on()

    def _charge(self, job: Job) -> None:
        """Charge the job that pays for the turn that ends now."""
        seconds = self.clock() - self._since
        for charged in {job, self._payer or job}:
            charged.seconds += seconds
        if self._payer is not None:
            self._turns.count(self._payer.path, seconds)
        if seconds > NOTICED_SECONDS:
            log.info("a step of %s took %.2f s", getattr(job.work, "__qualname__", "a job"), seconds)

    def pass_on(self) -> None:
        """Give the turn to the next job, if no job has it."""
        if self._runner is not None:
            return
        self._payer, self._runner = self._choose()
        self._since = self.clock()
        if self._runner is None:
            return
        giver = self._payer
        while giver is not None and giver is not self._runner and giver.wait is not None:
            giver.wait.has_given, giver = True, giver.wait.work
        if self._runner.has_begun:
            self._runner.turn.notify()
        else:
            self._runner.has_begun = True
            try:
                self._threads.run(partial(self._run, self._runner))
            except RuntimeError as problem:  # the system has no thread for it
                self._end(self._runner, error=problem)

    def _end(self, job: Job, result: Any = None, error: BaseException | None = None) -> None:
        """End the job whose turn it is, and pass that on."""
        self.jobs = [other for other in self.jobs if other is not job]
        self._cancelled = [other for other in self._cancelled if other is not job]
        job.end(result, error)
        self._runner = None
        self.pass_on()

    def _choose(self) -> tuple[Job | None, Job | None]:
        """Who is charged for the next turn, and who runs: what is to end first."""
        for work in self._cancelled:
            if not work.is_away:
                return None, work
        now = self.clock()
        runners = {job: runner for job in self.jobs if (runner := self._runner_for(job, now)) is not None}
        payer = next((job for job in runners if job.is_cancelled), None)
        if payer is None and runners:
            payer = (paths := _paths(runners))[self._turns.choose(paths)]
        return (payer, runners[payer]) if payer is not None else (None, None)

    def _runner_for(self, job: Job, now: float) -> Job | None:
        """Who runs when it is a job's turn: itself, or the work that it waits for; none while that is away."""
        if job.is_cancelled or job.wait is None or job.wait.is_over(now):
            return None if job.is_away else job
        runner = self._runner_for(job.wait.work, now)
        return job if runner is None and job.wait.until_moment < math.inf else runner

    def acquire(self, job: Job) -> None:
        """Wait for the turn."""
        job.turn.wait_for(lambda: self._runner is job)
        self._since = self.clock()

    def drop(self, work: SharedWork) -> None:
        """Forget shared work that has ended, or that no job waits for or holds; cancel it where it goes on."""
        if work.takers or (self._held[work.key] and not work.ended):
            return
        if self._shared.get(work.key) is work:
            del self._shared[work.key]
        if work.ended or work.stopped:
            return
        work.stopped = True
        if work.has_begun:
            self._cancelled.append(work)
            self.pass_on()
        else:
            work.end()

    # Without the lock

    def raise_if_cancelled(self, job: Job) -> None:
        """Raise Cancelled in a job that is to end; take back the turn from a client who has gone."""
        while (payer := self._payer) is not None and not (payer.is_cancelled or payer.is_connected()):
            with self.lock:
                payer.stopped = True
                if payer is not job:
                    self._runner = None
                    self.pass_on()
                    self.acquire(job)
            payer.interrupt()
        job.raise_if_cancelled()

    def _run(self, job: Job) -> None:
        error = result = None
        with self.lock:
            self.acquire(job)
        try:
            self.raise_if_cancelled(job)
            result = job.work(job)
        except Cancelled:
            pass
        except BaseException as problem:  # its handler gets the error; the other jobs go on
            if not isinstance(problem, Exception):  # a panic of a tokenizer: for its callers an error as any other
                problem = RuntimeError(repr(problem)).with_traceback(problem.__traceback__)
            error = problem
            forget_frames(problem)
        with self.lock:
            self._charge(job)
            self._end(job, result, error)


def _paths(jobs: Iterable[Job]) -> dict[Path, Job]:
    """The jobs by their paths as they are now."""
    places = {job: (job.urgency is Urgency.BACKGROUND, job.address or f"of {job.client}") for job in jobs}
    clients = Counter(place for place, _ in {(place, job.client) for job, place in places.items()})
    for job, place in places.items():
        has_begun = job.has_result or job.seconds >= BEGINNING_SECONDS
        job.path = place[0], has_begun, place[1], job.has_result and clients[place] > FEW, job.client, job.number
    return {job.path: job for job in places}
