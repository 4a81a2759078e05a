"""The order of turns, computed by hand, and what clients who wait are told of it."""

import threading
from collections.abc import Iterable
from itertools import count
from typing import Any

import pytest
from stepping import Clock, Stepped, counting

from components import limits
from components.jobs import round_robin
from components.jobs.job import Caller, Job, Urgency
from components.jobs.jobs import Jobs
from components.jobs.status import Status
from components.jobs.waiting import Line, Waiting
from components.limits import BEGINNING_SECONDS, FEW, SHARE, TURN_SECONDS

CLASS, ELSEWHERE = Caller("127.0.0.2"), Caller("127.0.0.3")
MANY = FEW + 2
STEP = 0.125  # seconds of a step; sums of it are exact
PER_TURN = round(TURN_SECONDS / STEP)


class Crowd:
    """Jobs on a scheduler that is stepped; each step takes `STEP` seconds, and is noted in the log."""

    def __init__(self) -> None:
        self.clock, self.log, self.numbers = Clock(), [], count()
        self.scheduler = Stepped(self.clock, TURN_SECONDS)

    def join(self, names: Iterable, steps: int, result: int = -1, seconds: float = STEP, **options: Any) -> None:
        """A job for each name, of a client of its own, who sees a result after step `result`."""
        for name in names:
            work = counting(self.log, name, steps, self.clock, seconds, result)
            self.scheduler.start(f"{name} {next(self.numbers)}", work, **({"caller": CLASS} | options))

    def step(self, count: int) -> list:
        """Let so many steps pass; returns whose they were."""
        before = len(self.log)
        while len(self.log) < before + count and self.scheduler.step():
            pass
        return self.log[before:]


@pytest.fixture
def crowd() -> Crowd:
    return Crowd()


def test_addresses_take_short_turns_then_clients_then_jobs(crowd) -> None:
    crowd.join("ab", 6)
    crowd.join("e", 8, caller=ELSEWHERE)
    assert "".join(crowd.step(5)) == "abaae"  # what has not begun has a queue of its own, which takes turns, too
    assert "".join(crowd.step(15)) == "eebbeeaaeebbeab"
    client = [crowd.scheduler.start("one client", counting(crowd.log, name, 5, crowd.clock, STEP)) for name in "xy"]
    assert "".join(crowd.step(10)) == "xyxxyyxxyy"
    crowd.scheduler.run()
    assert all(job.ended for job in client)


@pytest.mark.parametrize("second", ["seen", "background"])
def test_the_second_queue_has_one_second_in_nine_and_another_address_its_half(crowd, second) -> None:
    """Of a crowd at one address, jobs whose clients see a result; and background jobs."""
    crowd.join(["alone"], 900, result=0, caller=ELSEWHERE)
    if second == "seen":
        crowd.join([f"seen {number}" for number in range(3)], 900, result=0)
        crowd.join(range(MANY), 900)
    else:
        crowd.join(["background"], 900, urgency=Urgency.BACKGROUND)
    log, (turns, tolerance) = crowd.step(900), (450, 12) if second == "seen" else (900, 8)
    assert sum(str(name).startswith(second) for name in log) == pytest.approx(turns / (1 + SHARE), abs=tolerance)
    assert second == "background" or log.count("alone") == pytest.approx(450, abs=8)


def test_what_is_cached_and_the_first_token_of_an_answer_do_not_wait_in_line(crowd) -> None:
    crowd.join(range(2 * MANY), 50)
    crowd.step(5 * MANY)
    for seconds, steps in ((BEGINNING_SECONDS / 4, 3), (BEGINNING_SECONDS * 0.9, 2)):
        crowd.join(["new"], steps, seconds=seconds)
        assert crowd.step(steps) == ["new"] * steps
        crowd.step(PER_TURN)


def test_turns_of_long_ago_are_forgotten(crowd, monkeypatch) -> None:
    monkeypatch.setattr(round_robin, "REMEMBERED_TURNS", 30)
    for number in range(20):
        crowd.join([number], 2)
        crowd.scheduler.run()
    assert len(crowd.scheduler._turns._turns) < 50


def test_a_class_of_sixty_at_one_address_is_not_refused_and_another_address_has_places(monkeypatch) -> None:
    """Each student measures a setting, has an answer written, and has its costs measured in the background."""
    monkeypatch.setenv("INTRASLICE_HOSTED", "1")
    jobs, address, begun = Jobs(), ["127.0.0.2"], []
    jobs.caller, done = lambda: Caller(address[0]), threading.Event()

    def work(job: Job) -> None:
        job.emit(Status("working"))
        with job.waiting():
            done.wait()

    def begin(client: str, kind: str) -> str:
        begun.append(jobs.run(client, kind, work))
        return next(begun[-1]).kind

    kinds = ("measure", "answer", "costs")
    assert {begin(f"student {number}", kind) for number in range(60) for kind in kinds} == {"busy"}
    address[0] = "127.0.0.3"
    assert begin("another", "measure") == "busy"
    done.set()
    assert not any(event.kind == "error" for events in begun for event in events)


@pytest.fixture
def line(monkeypatch) -> Line:
    monkeypatch.setattr(limits, "LINE_SECONDS", -1.0)
    return Line()


def ended(kind: str, seconds: float, result: float | None = None) -> Job:
    job = Stepped().start("x", lambda job: None)
    job.kind, job.seconds, job.seconds_to_result = kind, seconds, result
    return job


def test_a_job_that_waits_tells_how_many_come_before_it_and_how_long_they_take(crowd, line) -> None:
    """How long is estimated from the last jobs of their kind until their first result, the newest with less weight."""
    crowd.join(range(MANY), 20)
    crowd.join(["alone"], 20, caller=ELSEWHERE)
    crowd.step(14)
    scheduler = crowd.scheduler
    for job in scheduler.jobs:
        job.kind = "evaluate 18"
    order = scheduler.line()
    assert "alone" in order[0].client + order[1].client  # the addresses take turns
    first, second, *_, last = order
    assert line.status(last, scheduler) == Waiting("Waiting; jobs ahead: 6")  # nothing is known of this kind
    for seconds, result in ((30.0, 3.0), (2.0, None)):
        line.note(ended("evaluate 17", seconds, result))
    stopped = ended("evaluate 3", 500.0)
    stopped.stopped = True
    line.note(stopped)
    assert line.status(first, scheduler) is None
    assert line.status(second, scheduler) == Waiting("Waiting; jobs ahead: 1", seconds_left=5)
    assert line.status(last, scheduler) == Waiting("Waiting; jobs ahead: 6", seconds_left=15)
    for job in order[:-1]:
        job.stop()
    scheduler.run()
    assert line.status(last, scheduler) is None


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


def test_a_job_that_has_the_turn_or_is_away_does_not_wait(crowd, line) -> None:
    scheduler, seen = crowd.scheduler, []

    def work(job: Job) -> None:
        seen.append(line.status(job, scheduler))
        job.checkpoint()

    crowd.join(range(2), 20)
    job = scheduler.start("a", work)
    while not seen:
        scheduler.step()
    assert seen == [None]
    with scheduler.lock:
        job.is_away = True
    assert line.status(job, scheduler) is None


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
