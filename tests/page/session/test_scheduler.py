"""The scheduler by itself, on toy generators; without a worker where the order of steps is what is asked."""

import threading
import time

import pytest

from components.session.work.scheduler import BACKGROUND, TURNS, Scheduler, Waiting, aside


@pytest.fixture
def scheduler():
    return Scheduler(worker=False)


def counting(log, name, steps):
    """Writes its name to the log at every step."""
    for step in range(steps):
        log.append(name)
        yield step
    return steps


def run(scheduler):
    while scheduler.step():
        pass


def events(job):
    return [event for news in job.news() for event in news]


def test_without_a_worker_who_listens_runs_the_steps_one_by_one(scheduler):
    log = []
    for news, _ in zip(scheduler.start("a", counting(log, "a", 5)).news(), range(2), strict=False):
        assert len(news) == 1
    assert log == ["a"] * 3  # and the third was told to nobody
    run(scheduler)
    assert log == ["a"] * 3


def test_visitors_take_turns_whatever_the_number_of_their_jobs(scheduler):
    log = []
    for _ in range(3):
        scheduler.start("greedy", counting(log, "greedy", 10))
    scheduler.start("modest", counting(log, "modest", 4))
    run(scheduler)
    assert log[:8].count("modest") == 4
    assert log.count("greedy") == 30


def test_who_asks_again_and_again_keeps_nobody_from_a_turn(scheduler):
    log = []
    scheduler.start("patient", counting(log, "patient", 5))
    for _ in range(5):
        scheduler.start("restless", counting(log, "restless", 1))
        scheduler.step()
        scheduler.step()
    assert log.count("patient") >= 4


def test_a_visitors_own_jobs_take_turns(scheduler):
    log = []
    scheduler.start("a", counting(log, "first", 3))
    scheduler.start("a", counting(log, "second", 3))
    run(scheduler)
    assert log == ["first", "second"] * 3


def test_what_people_wait_for_comes_first_and_the_background_does_not_starve(scheduler):
    log = []
    scheduler.start("a", counting(log, "background", 5), urgent=False)
    scheduler.start("b", counting(log, "urgent", 4 * TURNS))
    run(scheduler)
    assert log[:TURNS] == ["urgent"] * TURNS
    assert log[: 4 * TURNS + 3].count("background") == 3
    assert log.count("background") == 5


def test_a_job_that_goes_to_the_background_gives_way(scheduler):
    log = []

    def work():
        yield from counting(log, "before", 2)
        yield BACKGROUND
        yield from counting(log, "after", 2)

    job = scheduler.start("a", work())
    for _ in range(3):
        scheduler.step()
    scheduler.start("b", counting(log, "urgent", 3))
    run(scheduler)
    assert log == ["before", "before", "urgent", "urgent", "urgent", "after", "after"]
    assert events(job) == [0, 1, 0, 1]  # the marker itself is told to nobody


def test_an_error_is_told_to_its_listener_and_nobody_else(scheduler):
    def failing():
        yield "step"
        raise RuntimeError("broken")

    bad, good = scheduler.start("a", failing()), scheduler.start("b", counting([], "b", 3))
    run(scheduler)
    heard = []
    with pytest.raises(RuntimeError, match="broken"):
        heard.extend(event for news in bad.news() for event in news)
    assert heard == ["step"]
    assert events(good) == [0, 1, 2]


def test_an_error_while_a_job_tidies_up_ends_no_other(scheduler):
    def untidy():
        try:
            while True:
                yield "step"
        finally:
            raise RuntimeError("untidy")

    job, other = scheduler.start("a", untidy()), scheduler.start("b", counting([], "b", 2))
    scheduler.step()
    job.stop()
    run(scheduler)
    assert job.ended
    assert events(other) == [0, 1]


def test_a_stopped_job_ends_at_its_next_step_before_anything_else(scheduler):
    log, ended = [], []

    def work():
        try:
            yield from counting(log, "a", 100)
        finally:
            ended.append(True)

    job = scheduler.start("a", work(), urgent=False)
    scheduler.step()
    scheduler.start("b", counting(log, "b", 5))
    job.stop()
    scheduler.step()
    assert ended == [True]
    assert log == ["a"]


def test_a_job_that_nobody_hears_of_ends_at_its_next_step(scheduler):
    log, listening = [], [True]
    job = scheduler.start("a", counting(log, "a", 100), listening=lambda: listening[0])
    scheduler.step()
    listening.clear()
    listening.append(False)
    run(scheduler)
    assert log == ["a"]
    assert job.ended
    assert job.stopped


def test_who_stops_listening_stops_the_job():
    scheduler, log = Scheduler(), []

    def endless():
        while True:
            log.append("a")
            yield "step"
            time.sleep(0.001)

    job = scheduler.start("a", endless())
    for _ in job.news():
        break
    deadline = time.monotonic() + 5
    while not job.ended and time.monotonic() < deadline:
        time.sleep(0.01)
    assert job.ended
    before = len(log)
    time.sleep(0.05)
    assert len(log) == before


def test_a_job_that_waits_lets_others_work(scheduler):
    log = []

    def slow():
        yield Waiting(0.05)
        log.append("slow")
        yield "done"

    job = scheduler.start("a", slow())
    scheduler.start("b", counting(log, "b", 3))
    run(scheduler)
    assert log == ["b"] * 3
    time.sleep(0.06)
    run(scheduler)
    assert log[-1] == "slow"
    assert events(job) == ["done"]


def test_all_steps_run_on_one_thread_and_what_waits_on_another():
    scheduler, threads = Scheduler(), []

    def work():
        for _ in range(5):
            threads.append(threading.get_ident())
            yield "step"
        return (yield from aside(threading.get_ident))

    def finishing():
        yield (yield from work())

    jobs = [scheduler.start(name, finishing()) for name in "abc"]
    asides = {events(job)[-1] for job in jobs}
    assert len(set(threads)) == 1
    assert not asides & {*threads, threading.get_ident()}


def test_what_fails_aside_fails_the_job():
    def failing():
        raise OSError("no network")

    def work():
        yield (yield from aside(failing))

    with pytest.raises(OSError, match="no network"):
        events(Scheduler().start("a", work()))
