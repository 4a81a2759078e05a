"""What a job that waits tells: how many come before it, and about how long they take. On toy jobs."""

from __future__ import annotations

import pytest
from stepping import Stepped
from test_scheduler import counting

from components.i18n.language import translate, use_language
from components.jobs import jobs as running
from components.jobs import waiting
from components.jobs.job import Caller, Job
from components.jobs.jobs import Jobs
from components.jobs.status import Status
from components.jobs.turns import FEW, Urgency
from components.jobs.waiting import Line, Waiting
from components.ui import formatting


@pytest.fixture
def line(monkeypatch):
    monkeypatch.setattr(waiting, "LINE_SECONDS", -1.0)
    return Line()


def crowd(scheduler, clock, count=FEW + 2):
    """Jobs of 2 s, of clients of one address."""
    caller = Caller("127.0.0.2")
    return [scheduler.start(f"{n}", counting([], n, 20, clock, 0.125), caller=caller) for n in range(count)]


def ended(seconds: float, result: float | None = None) -> Job:
    job = Stepped().start("x", lambda job: None)
    job.seconds, job.seconds_to_result = seconds, result
    return job


def test_a_job_that_waits_tells_how_many_come_before_it_and_how_long_they_take(scheduler, clock, line):
    kinds = dict.fromkeys(crowd(scheduler, clock), "measure")
    for _ in range(8):
        scheduler.step()
    first, second, *_, last = scheduler.line()
    assert line.status(last, scheduler, kinds) == Waiting("Waiting; jobs ahead: 5")  # nothing is known of this kind
    line.note("measure", ended(2.5))
    assert line.status(first, scheduler, kinds) is None
    assert line.status(second, scheduler, kinds) == Waiting("Waiting; jobs ahead: 1", seconds_left=5)
    assert line.status(last, scheduler, kinds) == Waiting("Waiting; jobs ahead: 5", seconds_left=15)  # 11.5, rounded up
    for job in scheduler.line()[:-1]:
        job.stop()
    scheduler.run()
    assert line.status(last, scheduler, kinds) is None


def test_what_several_wait_for_counts_once_and_a_clients_own_jobs_do_not(scheduler, clock, line):
    caller = Caller("127.0.0.2")
    work = counting([], "made", 400, clock, 0.125)
    jobs = [scheduler.start(f"{n}", lambda job: job.share("slice", work), caller=caller) for n in range(FEW + 1)]
    jobs += [scheduler.start("last", counting([], "", 400, clock, 0.125), Urgency.BACKGROUND, caller) for _ in range(2)]
    while not all(job.wait for job in jobs[: FEW + 1]):
        scheduler.step()
    line.note("measure", ended(9.0, 4.5))
    told = line.status(jobs[-1], scheduler, dict.fromkeys(jobs, "measure"))
    assert told.text == f"Waiting; jobs ahead: {FEW + 1}"
    assert told.seconds_left <= 5


def test_who_has_the_turn_or_is_away_does_not_wait(scheduler, clock, line):
    seen = []

    def work(job):
        seen.append(line.status(job, scheduler, {}))
        job.checkpoint()

    crowd(scheduler, clock, 2)
    job = scheduler.start("a", work)
    while not seen:
        scheduler.step()
    assert seen == [None]
    with scheduler.lock:
        job.is_away = True
    assert line.status(job, scheduler, {}) is None


def test_an_estimate_is_of_the_last_jobs_until_their_first_result(scheduler, clock, line):
    jobs = crowd(scheduler, clock, 2)
    kinds = dict.fromkeys(jobs, "evaluate 18")
    for seconds, result in ((100.0, 10.0), (20.0, None)):
        line.note("evaluate 17", ended(seconds, result))
    stopped = ended(500.0)
    stopped.stopped = True
    line.note("evaluate 3", stopped)
    assert line.status(jobs[1], scheduler, kinds).seconds_left == 15  # of 10 and 20 s, the newest with less weight


def test_the_page_tells_it_once_in_a_while_and_then_what_the_job_does(scheduler, monkeypatch):
    monkeypatch.setattr(running, "PATIENCE", 0.01)
    monkeypatch.setattr(waiting, "LINE_SECONDS", -1.0)
    jobs = Jobs()
    jobs.scheduler = scheduler
    scheduler.start("other", lambda job: None)
    events = jobs.run("me", "answer", lambda job: job.emit(Status("working")))
    assert next(events) == Waiting("Waiting; jobs ahead: 1")
    scheduler.run()
    assert [event.text for event in events] == ["working"]


def test_the_page_tells_it_again_after_the_job_has_done_something(scheduler, monkeypatch):
    monkeypatch.setattr(running, "PATIENCE", 0.01)
    monkeypatch.setattr(running, "AGAIN", 0.0)
    monkeypatch.setattr(waiting, "LINE_SECONDS", -1.0)
    jobs = Jobs()
    jobs.scheduler = scheduler
    scheduler.start("other", counting([], "", 20))

    def work(job):
        job.emit(Status("working"))
        for _ in range(9):
            job.checkpoint()

    events = jobs.run("me", "answer", work)
    assert next(events) == Waiting("Waiting; jobs ahead: 1")
    for _ in range(4):
        scheduler.step()
    assert next(events).text == "working"
    assert next(events) == Waiting("Waiting; jobs ahead: 1")
    scheduler.run()
    assert list(events) == []


def test_the_words_are_those_of_the_language() -> None:
    status = Waiting("", seconds_left=30)
    with use_language("de"):
        assert translate(formatting.status_text(status)) == ", noch etwa 30 s"
    assert "about 30 s" in formatting.status_text(status)
