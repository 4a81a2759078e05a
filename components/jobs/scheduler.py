"""Runs the jobs of all clients, each in a thread of a pool, one at a time: the others wait until they get the turn.

So jobs neither compete for the cores nor need locks among each other; only the few layers that a slice has begun end in
another job's turn. `round_robin.py` says who comes next. No lock is held while a job's function runs. Knows nothing of
models, and nothing of the page.
"""

from __future__ import annotations

import logging
import math
import threading
import time
from collections import Counter
from collections.abc import Callable, Hashable
from functools import partial
from traceback import format_tb
from typing import Any

from ..i18n.language import lazy_gettext
from ..limits import NOTICED_SECONDS
from .job import UNKNOWN, Caller, Cancelled, Job, Result, Shared, SharedWork, Urgency, Wait
from .round_robin import Turns
from .threads import ThreadPool

log = logging.getLogger(__name__)


class Scheduler:
    """The jobs of all clients.

    Args:
        initialise: called once in every thread that runs jobs, before its first.
    """

    job_class: type[Job] = Job

    def __init__(
        self, initialise: Callable[[], None] = lambda: None, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self.lock = threading.Lock()  # of everything below, and of the jobs' states
        self.jobs: list[Job] = []  # that have not ended, without shared work
        self._clock = clock
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
        caller: Caller = UNKNOWN,
        max_seconds: float = math.inf,
    ) -> Job:
        """Take on a job of a client. It ends in a TimeoutError after `max_seconds` of its own turns."""
        job = self.job_class(self, client, work, urgency, caller, max_seconds)
        with self.lock:
            self.jobs.append(job)
            self._pass_on()
        return job

    def line(self) -> list[Job]:
        """The jobs that want a turn, in the order in which they get it as things are now; first who has it."""
        with self.lock:
            now, payer = self._clock(), self._payer if self._runner is not None else None
            wanting = [job for job in self.jobs if self._runner_for(job, now) is not None and job is not payer]
            has_turn = [payer] if payer in self.jobs else []
            return [*has_turn, *self._turns.in_order(wanting)]

    # What jobs call (`job.py` says what each does)

    def checkpoint(self, job: Job) -> None:
        """Give up the turn, and take it again when it comes."""
        with self.lock:
            self._give_up(job)
            self._acquire(job)
        self._raise_if_cancelled(job)

    def leave(self, job: Job) -> None:
        """Give up the turn until `come_back`."""
        with self.lock:
            self._give_up(job, is_away=True)

    def come_back(self, job: Job) -> None:
        """Take the turn again."""
        with self.lock:
            job.is_away = False
            self._pass_on()
            self._acquire(job)

    def stop(self, job: Job) -> None:
        """Cancel a job whose client wants no more of it."""
        with self.lock:
            if job.ended or job.stopped:
                return
            job.stopped = True
            if not job.has_begun:
                self.jobs.remove(job)
                job.end()
            self._pass_on()
        job.interrupt()

    def begin(self, job: Job, key: Hashable, work: Callable[[Job], Result]) -> Shared[Result]:
        """Let a job take part in the work under `key`."""
        with self.lock:
            shared = self._shared.get(key)
            if shared is None or shared.ended:  # other jobs may still use the result of work that has ended
                shared = self._shared[key] = SharedWork(self, key, work)
            shared.takers.append(job)
        return Shared(self, job, shared, self._clock)

    def wait(self, job: Job, wait: Wait) -> None:
        """Give a job's turns to shared work until `wait` is over."""
        with self.lock:
            job.wait = wait
            self._give_up(job)
            self._acquire(job)
            job.wait = None
        self._raise_if_cancelled(job)

    def end_sharing(self, job: Job, work: SharedWork) -> None:
        """A job waits no more for shared work; the last one's leaving cancels that."""
        with self.lock:
            work.takers.remove(job)
            self._drop(work)

    def hold(self, key: Hashable, count: int) -> None:
        """Keep the work under `key` where it is `count` times more, or less."""
        with self.lock:
            self._held[key] += count
            self._held += Counter()  # without those that no job holds
            if work := self._shared.get(key):
                self._drop(work)

    # All of these are called with the lock held

    def _give_up(self, job: Job, is_away: bool = False) -> None:
        """Charge a job for its turn, and pass that on."""
        if self._runner is not job:
            raise RuntimeError("only the job whose turn it is may give it up")
        payer = self._charge(job)
        if payer is not None and payer.seconds > payer.max_seconds and not payer.is_cancelled:
            payer.error = TimeoutError(
                lazy_gettext(
                    "This job reached its limit of {seconds:,.0f} seconds. Choose a smaller model, or measure "
                    "less at once.",
                    seconds=payer.seconds,
                )
            )
        job.is_away, self._runner = is_away, None
        self._pass_on()

    def _charge(self, job: Job) -> Job | None:
        """Charge the job that pays for the turn that ends now, and return it."""
        seconds, payer = self._clock() - self._since, self._payer
        if payer is not None:
            self._turns.count(payer, seconds)
        if payer is not job:
            job.seconds += seconds
        if seconds > NOTICED_SECONDS:
            log.info("a step of %s took %.2f s", getattr(job.work, "__qualname__", "a job"), seconds)
        return payer

    def _pass_on(self) -> None:
        """Give the turn to the next job, if no job has it."""
        if self._runner is not None:
            return
        self._payer, self._runner = self._choose()
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
        self._pass_on()

    def _choose(self) -> tuple[Job | None, Job | None]:
        """Who is charged for the next turn, and who runs: what is to end first."""
        for work in self._cancelled:
            if not work.is_away:
                return None, work
        now = self._clock()
        runners = {job: runner for job in self.jobs if (runner := self._runner_for(job, now)) is not None}
        cancelled = next((job for job in runners if job.is_cancelled), None)
        payer = cancelled or self._turns.choose(list(runners))
        return (payer, runners[payer]) if payer is not None else (None, None)

    def _runner_for(self, job: Job, now: float) -> Job | None:
        """Who runs when it is a job's turn: itself, or the work that it waits for; none while that is away."""
        if job.is_cancelled or job.wait is None or job.wait.is_over(now):
            return None if job.is_away else job
        runner = self._runner_for(job.wait.work, now)
        return job if runner is None and job.wait.until_moment < math.inf else runner

    def _acquire(self, job: Job) -> None:
        job.turn.wait_for(lambda: self._runner is job)
        self._since = self._clock()

    def _drop(self, work: SharedWork) -> None:
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
            self._pass_on()
        else:
            work.end()

    # Without the lock

    def _raise_if_cancelled(self, job: Job) -> None:
        """Raise Cancelled in a job that is to end; take back the turn from a client who has gone."""
        while (payer := self._payer) is not None and not (payer.is_cancelled or payer.is_connected()):
            with self.lock:
                payer.stopped = True
                if payer is not job:
                    self._runner = None
                    self._pass_on()
                    self._acquire(job)
            payer.interrupt()
        job.raise_if_cancelled()

    def _run(self, job: Job) -> None:
        """What a thread of the pool does for a job."""
        error = result = None
        with self.lock:
            self._acquire(job)
        try:
            self._raise_if_cancelled(job)
            result = job.work(job)
        except Cancelled:
            pass
        except BaseException as problem:  # its handler gets the error; the other jobs go on
            if not isinstance(problem, Exception):  # a panic of a tokenizer: for its callers an error as any other
                problem = RuntimeError(repr(problem)).with_traceback(problem.__traceback__)
            error = problem
            _forget_frames(problem)
        with self.lock:
            self._charge(job)
            self._end(job, result, error)


def _forget_frames(error: BaseException) -> None:
    """Replace an error's traceback by its text: frames hold variables and closures, models among them.

    Clearing the frames is not enough: they keep their functions, and thereby the closures. A job and its error are a
    cycle, so only a garbage collection would free all that.
    """
    cause: BaseException | None = error
    seen: list[BaseException] = []
    while cause is not None and cause not in seen:
        seen.append(cause)
        if not hasattr(cause, "__notes__"):
            cause.add_note("In its job:\n" + "".join(format_tb(cause.__traceback__)))
        cause.__traceback__ = None
        cause = cause.__cause__ or cause.__context__
