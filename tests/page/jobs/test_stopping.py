"""How jobs end early and wait, on toy jobs."""

import threading

import pytest
from stepping import Clock, Stepped
from test_scheduler import counting, events

from components.jobs.job import Caller, Cancelled
from components.jobs.scheduler import Scheduler
from components.jobs.turns import Urgency


@pytest.fixture
def scheduler():
    return Stepped(Clock())


def test_a_stopped_job_ends_at_its_checkpoint_before_anything_else(scheduler):
    log, ended = [], []

    def work(job):
        try:
            counting(log, "a", 100)(job)
        except Exception:  # as code does that tries again: this is no failure of its own
            log.append("tried again")
        finally:
            ended.append(True)

    job = scheduler.start("a", work, Urgency.BACKGROUND)
    scheduler.step()
    scheduler.start("b", counting(log, "b", 5))
    job.stop()
    scheduler.step()
    assert ended == [True]
    assert log == ["a"]


def test_a_job_that_is_stopped_before_its_first_turn_never_begins(scheduler):
    log = []
    job = scheduler.start("a", counting(log, "a", 3))
    job.stop()
    assert job.ended
    assert not scheduler.step()
    assert events(job) == log == []


def test_a_job_whose_client_has_gone_ends_at_its_next_checkpoint(scheduler):
    log, connected = [], [True]
    job = scheduler.start("a", counting(log, "a", 100), caller=Caller(is_connected=lambda: connected[0]))
    scheduler.step()
    connected[0] = False
    scheduler.run()
    assert log == ["a"]
    assert job.ended
    assert job.stopped


def test_who_stops_listening_stops_the_job():
    ended = threading.Event()

    def endless(job):
        try:
            while True:
                job.emit("step")
        finally:
            ended.set()

    scheduler = Scheduler()
    for _ in scheduler.start("a", endless).events():
        break
    assert ended.wait(30)
    assert scheduler.start("a", counting([], "a", 1)).join() == 1  # and the turn was passed on


def test_a_job_that_waits_lets_others_work(scheduler):
    log, arrived = [], threading.Event()

    def slow(job):
        with job.waiting():
            arrived.wait()
        log.append("slow")
        job.emit("done")

    job = scheduler.start("a", slow)
    scheduler.start("b", counting(log, "b", 3))
    scheduler.run()
    assert log == ["b"] * 3
    arrived.set()
    scheduler.until(lambda: not job.is_away)
    scheduler.run()
    assert log[-1] == "slow"
    assert events(job) == ["done"]


def test_nobody_waits_for_a_stopped_job_that_is_away():
    arrived, ended = threading.Event(), threading.Event()

    def slow(job):
        try:
            with job.waiting():
                arrived.wait()
            job.emit("never")
        except Cancelled:
            ended.set()
            raise

    def stop_when_away(job):
        while not slow_job.is_away:
            job.checkpoint()
        slow_job.stop()

    scheduler = Scheduler()
    slow_job = scheduler.start("a", slow)
    scheduler.start("b", stop_when_away)
    assert events(slow_job) == []
    assert not slow_job.ended
    arrived.set()
    assert ended.wait(30)


def test_a_stopped_job_sleeps_no_longer():
    job = Scheduler().start("a", lambda job: job.sleep(1e6))
    job.stop()
    assert events(job) == []
