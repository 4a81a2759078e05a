"""What clients who wait are told of the order of turns, which `test_scheduler.py` has."""

from collections.abc import Callable, Iterable

import pytest
from stepping import Stepped, counting

from components import limits
from components.jobs import round_robin
from components.jobs.job import Caller, Job, Urgency
from components.jobs.jobs import Jobs
from components.jobs.status import Status
from components.jobs.waiting import Line, Waiting
from components.limits import FEW, TURN_SECONDS

CLASS, ELSEWHERE = Caller("127.0.0.2"), Caller("127.0.0.3")
MANY = FEW + 2
STEP = 0.125  # seconds of a step; sums of it are exact


@pytest.fixture
def crowd(clock) -> Stepped:
    """A scheduler on which every step of a job takes `STEP` seconds."""
    return Stepped(clock, TURN_SECONDS)


@pytest.fixture
def join(crowd, clock) -> Callable[..., None]:
    """Begins a job for each name, of a client of its own."""

    def begin(names: Iterable, steps: int, caller: Caller = CLASS) -> None:
        for name in names:
            crowd.start(str(name), counting([], name, steps, clock, STEP), caller=caller)

    return begin


def test_turns_of_long_ago_are_forgotten(crowd, join, monkeypatch) -> None:
    monkeypatch.setattr(round_robin, "REMEMBERED_TURNS", 30)
    for number in range(20):
        join([number], 2)
        crowd.run()
    assert len(crowd._turns._turns) < 50


@pytest.fixture
def line(monkeypatch) -> Line:
    monkeypatch.setattr(limits, "LINE_SECONDS", -1.0)
    return Line()


def ended(kind: str, seconds: float, result: float | None = None) -> Job:
    job = Stepped().start("x", lambda job: None)
    job.kind, job.seconds, job.seconds_to_result = kind, seconds, result
    return job


def test_a_job_that_waits_tells_how_many_come_before_it_and_how_long_they_take(crowd, join, line) -> None:
    """How long is estimated from the last jobs of their kind until their first result, the newest with less weight."""
    join(range(MANY), 20)
    join(["alone"], 20, ELSEWHERE)
    for _ in range(14):
        crowd.step()
    for job in crowd.jobs:
        job.kind = "evaluate 18"
    order = crowd.line()
    assert "alone" in order[0].client + order[1].client  # the addresses take turns
    first, second, *_, last = order
    assert line.status(last, crowd) == Waiting("Waiting; jobs ahead: 6")  # nothing is known of this kind
    for seconds, result in ((30.0, 3.0), (2.0, None)):
        line.note(ended("evaluate 17", seconds, result))
    stopped = ended("evaluate 3", 500.0)
    stopped.stopped = True
    line.note(stopped)
    assert line.status(first, crowd) is None
    assert line.status(second, crowd) == Waiting("Waiting; jobs ahead: 1", seconds_left=5)
    assert line.status(last, crowd) == Waiting("Waiting; jobs ahead: 6", seconds_left=15)
    for job in order[:-1]:
        job.stop()
    crowd.run()
    assert line.status(last, crowd) is None


def test_what_several_wait_for_counts_once_and_a_clients_own_jobs_do_not(scheduler, clock, line) -> None:
    work = counting([], "made", 400, clock, STEP)
    jobs = [scheduler.start(f"{n}", lambda job: job.share("slice", work), caller=CLASS) for n in range(FEW + 1)]
    jobs += [scheduler.start("last", counting([], "", 400, clock, STEP), Urgency.BACKGROUND, CLASS) for _ in range(2)]
    while not all(job.wait for job in jobs[: FEW + 1]):
        scheduler.step()
    line.note(ended("measure", 9.0, 4.5))
    for job in jobs:
        job.kind = "measure"
    told = line.status(jobs[-1], scheduler)
    assert told.text == f"Waiting; jobs ahead: {FEW + 1}"
    assert told.seconds_left <= 5


def test_a_job_that_has_the_turn_or_is_away_does_not_wait(crowd, join, line) -> None:
    seen = []

    def work(job: Job) -> None:
        seen.append(line.status(job, crowd))
        job.checkpoint()

    join(range(2), 20)
    job = crowd.start("a", work)
    while not seen:
        crowd.step()
    assert seen == [None]
    with crowd.lock:
        job.is_away = True
    assert line.status(job, crowd) is None


def test_the_page_tells_it_once_in_a_while_and_again_after_the_job_has_done_something(scheduler, monkeypatch) -> None:
    for name in ("LINE_SECONDS", "REMINDER_SECONDS", "QUIET_SECONDS"):
        monkeypatch.setattr(limits, name, 0.01 if name == "QUIET_SECONDS" else 0.0)
    jobs = Jobs(scheduler)
    scheduler.start("other", counting([], "", 20))  # whose turns alternate with those of the job

    def work(job: Job) -> None:
        job.emit(Status("working"))
        for _ in range(9):
            job.checkpoint()

    events = jobs.run("me", "answer", work)
    assert next(events) == Waiting("Waiting; jobs ahead: 1")
    for _ in range(3):
        scheduler.step()
    assert next(events).text == "working"
    assert next(events) == Waiting("Waiting; jobs ahead: 1")
    scheduler.run()
    assert list(events) == []
