"""The scheduler by itself, on toy generators; without a worker where the order of steps is what is asked."""

import threading
import time

import pytest

from components.jobs.aside import aside
from components.jobs.scheduler import LONG, SHARE, WEIGHT, Scheduler, Urgency, Waiting


class Clock:
    """Stands still but while a step says that it takes its time."""

    now = 0.0

    def __call__(self):
        return self.now


@pytest.fixture
def clock():
    return Clock()


@pytest.fixture
def scheduler(clock):
    return Scheduler(worker=False, clock=clock)


def counting(log, name, steps, clock=None, seconds=0.0):
    """Writes its name to the log at every step."""
    for step in range(steps):
        log.append(name)
        if clock:
            clock.now += seconds
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


def test_turns_are_fair_by_the_seconds_that_steps_take(scheduler, clock):
    log = []
    scheduler.start("slow", counting(log, "slow", 10, clock, 0.4))
    scheduler.start("quick", counting(log, "quick", 40, clock, 0.1))
    for _ in range(25):
        scheduler.step()
    assert log.count("slow") == pytest.approx(5, abs=1)
    assert log.count("quick") == pytest.approx(20, abs=1)


def test_who_comes_late_has_as_much_as_who_was_there(scheduler, clock):
    """Neither what was used before, nor that somebody was not there to use it, gives anybody the next minutes."""
    log = []
    scheduler.start("early", counting(log, "early", 200, clock, 0.1))
    for _ in range(100):
        scheduler.step()
    scheduler.start("late", counting(log, "late", 100, clock, 0.1))
    for _ in range(20):
        scheduler.step()
    assert log[100:].count("early") == pytest.approx(10, abs=1)


def test_short_jobs_one_after_the_other_are_counted_together(scheduler, clock):
    log = []
    scheduler.start("patient", counting(log, "patient", 1000, clock, 0.1))
    for _ in range(30):
        job = scheduler.start("restless", counting(log, "restless", 1, clock, 0.5))
        while not job.ended:
            scheduler.step()
    assert log.count("patient") >= 5 * 25


def test_what_a_visitor_asked_for_last_has_most_of_their_turns_and_no_one_elses(scheduler, clock):
    log = []
    scheduler.start("a", counting(log, "other", 100, clock, 0.1))
    scheduler.start("a", counting(log, "first", 100, clock, 0.1), Urgency.FIRST)
    scheduler.start("b", counting(log, "b", 100, clock, 0.1))
    for _ in range(100):
        scheduler.step()
    assert log.count("b") == pytest.approx(50, abs=1)
    assert log.count("first") == pytest.approx(50 * WEIGHT / (WEIGHT + 1), abs=2)
    assert log.count("other") >= 8


@pytest.mark.parametrize("step", [0.01, 0.4, 1.2])
def test_what_people_wait_for_comes_first_and_the_background_does_not_starve(scheduler, clock, step):
    log = []
    scheduler.start("a", counting(log, "background", 1000, clock, step), Urgency.BACKGROUND)
    scheduler.step()
    clock.now = 0.0
    scheduler.start("b", counting(log, "waited for", 1000, clock, 0.1))
    while clock.now < 40:
        scheduler.step()
    waited = 0.1 * log.count("waited for")
    assert waited >= 40 * SHARE / (SHARE + max(1.0, step / LONG)) - 2 * step
    assert log.count("background") >= 2
    assert log[1] == "waited for"


def test_a_job_that_goes_to_the_background_gives_way(scheduler):
    log = []

    def work():
        yield from counting(log, "before", 2)
        yield Urgency.BACKGROUND
        yield from counting(log, "after", 2)

    job = scheduler.start("a", work())
    for _ in range(3):
        scheduler.step()
    scheduler.start("b", counting(log, "urgent", 3))
    run(scheduler)
    assert log == ["before", "before", "urgent", "urgent", "urgent", "after", "after"]
    assert events(job) == [0, 1, 0, 1]  # the marker itself is told to nobody


def test_a_job_that_takes_too_long_ends_and_says_so(scheduler, clock):
    log = []
    long = scheduler.start("a", counting(log, "long", 100, clock, 1.0), most=10)
    short = scheduler.start("b", counting(log, "short", 11, clock, 0.5), most=10)
    run(scheduler)
    assert (log.count("long"), log.count("short")) == (11, 11)  # what others take is not counted
    with pytest.raises(TimeoutError, match="took 11 seconds"):
        events(long)
    assert len(events(short)) == 11


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

    job = scheduler.start("a", work(), Urgency.BACKGROUND)
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


def test_a_job_that_waits_lets_others_work(scheduler, clock):
    log = []

    def slow():
        yield Waiting(0.05)
        log.append("slow")
        yield "done"

    job = scheduler.start("a", slow())
    scheduler.start("b", counting(log, "b", 3))
    run(scheduler)
    assert log == ["b"] * 3
    clock.now += 0.06
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
