"""The scheduler by itself, on toy jobs; stepped by hand where the order of turns is what is asked."""

import threading

import pytest

from components.jobs.job import Caller
from components.jobs.scheduler import Scheduler
from components.jobs.turns import LONG, SHARE, WEIGHT, Urgency


def counting(log, name, steps, clock=None, seconds=0.0):
    """A job that writes its name to the log in every turn."""

    def work(job):
        for step in range(steps):
            log.append(name)
            if clock:
                clock.now += seconds
            job.emit(step)
        return steps

    return work


def events(job):
    return [event for news in job.events() for event in news]


def test_a_job_returns_a_value_or_raises():
    assert Scheduler().start("a", counting([], "a", 3)).join() == 3

    def failing(job):
        raise RuntimeError("broken")

    with pytest.raises(RuntimeError, match="broken"):
        Scheduler().start("a", failing).join()


def test_clients_take_turns_whatever_the_number_of_their_jobs(scheduler):
    log = []
    for _ in range(3):
        scheduler.start("greedy", counting(log, "greedy", 10))
    scheduler.start("modest", counting(log, "modest", 4))
    scheduler.run()
    assert log[:8].count("modest") == 4
    assert log.count("greedy") == 30


def test_addresses_take_turns_whatever_the_number_of_their_clients(scheduler):
    log = []
    for client in range(60):
        scheduler.start(f"session {client}", counting(log, "greedy", 10), caller=Caller("127.0.0.2"))
    scheduler.start("modest", counting(log, "modest", 4), caller=Caller("127.0.0.3"))
    scheduler.start("hidden", counting(log, "hidden", 4))  # by a proxy
    scheduler.run()
    assert log[:12].count("modest") == log[:12].count("hidden") == 4


def test_who_asks_again_and_again_keeps_nobody_from_a_turn(scheduler):
    log = []
    scheduler.start("patient", counting(log, "patient", 5))
    for _ in range(5):
        scheduler.start("restless", counting(log, "restless", 1))
        scheduler.step()
        scheduler.step()
    assert log.count("patient") >= 4


def test_a_clients_own_jobs_take_turns(scheduler):
    log = []
    scheduler.start("a", counting(log, "first", 3))
    scheduler.start("a", counting(log, "second", 3))
    scheduler.run()
    assert log == ["first", "second"] * 3


def test_turns_are_fair_by_the_seconds_that_they_take(scheduler, clock):
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


def test_what_a_client_asked_for_last_has_most_of_their_turns_and_no_one_elses(scheduler, clock):
    log = []
    scheduler.start("a", counting(log, "other", 100, clock, 0.1))
    scheduler.start("a", counting(log, "first", 100, clock, 0.1), Urgency.FIRST)
    scheduler.start("b", counting(log, "b", 100, clock, 0.1))
    for _ in range(100):
        scheduler.step()
    assert log.count("b") == pytest.approx(50, abs=1)
    assert log.count("first") == pytest.approx(50 * WEIGHT / (WEIGHT + 1), abs=2)
    assert log.count("other") >= 8


@pytest.mark.parametrize("seconds", [0.01, 0.4, 1.2])
def test_what_people_wait_for_comes_first_and_the_background_does_not_starve(scheduler, clock, seconds):
    log = []
    scheduler.start("a", counting(log, "background", 1000, clock, seconds), Urgency.BACKGROUND)
    scheduler.step()
    clock.now = 0.0
    scheduler.start("b", counting(log, "waited for", 1000, clock, 0.1))
    while clock.now < 40:
        scheduler.step()
    waited = 0.1 * log.count("waited for")
    assert waited >= 40 * SHARE / (SHARE + max(1.0, seconds / LONG)) - 2 * seconds
    assert log.count("background") >= 2
    assert log[1] == "waited for"


def test_a_job_that_goes_to_the_background_gives_way(scheduler):
    log = []

    def work(job):
        counting(log, "before", 2)(job)
        job.urgency = Urgency.BACKGROUND
        job.checkpoint()
        counting(log, "after", 2)(job)

    scheduler.start("a", work)
    for _ in range(3):
        scheduler.step()
    scheduler.start("b", counting(log, "urgent", 3))
    scheduler.run()
    assert log == ["before", "before", "urgent", "urgent", "urgent", "after", "after"]


def test_a_job_that_takes_too_long_ends_and_says_so(scheduler, clock):
    log = []
    long = scheduler.start("a", counting(log, "long", 100, clock, 1.0), max_seconds=10)
    short = scheduler.start("b", counting(log, "short", 11, clock, 0.5), max_seconds=10)
    scheduler.run()
    assert (log.count("long"), log.count("short")) == (11, 11)  # what others take is not counted
    with pytest.raises(TimeoutError, match="limit of 11 seconds"):
        events(long)
    assert len(events(short)) == 11


def test_an_error_is_told_to_its_listener_and_nobody_else(scheduler):
    def failing(job):
        job.emit("step")
        raise RuntimeError("broken")

    bad, good = scheduler.start("a", failing), scheduler.start("b", counting([], "b", 3))
    scheduler.run()
    heard = []
    with pytest.raises(RuntimeError, match="broken"):
        heard.extend(event for news in bad.events() for event in news)
    assert heard == ["step"]
    assert events(good) == [0, 1, 2]


def test_an_error_while_a_job_tidies_up_ends_no_other(scheduler):
    def untidy(job):
        try:
            while True:
                job.emit("step")
        finally:
            raise RuntimeError("untidy")

    job, other = scheduler.start("a", untidy), scheduler.start("b", counting([], "b", 2))
    scheduler.step()
    job.stop()
    scheduler.run()
    assert job.ended
    assert events(other) == [0, 1]


def test_one_runs_at_a_time_each_in_a_thread_of_its_own_that_is_initialised_once():
    """Jobs that take turns as fast as they can, and count without a lock what they do together."""
    initialised, seen, counts = [], set(), [0]

    def work(job):
        for _ in range(300):
            before = counts[0]
            seen.add(threading.get_ident())
            counts[0] = before + 1
            job.checkpoint()

    scheduler = Scheduler(initialise=lambda: initialised.append(threading.get_ident()))
    jobs = [scheduler.start(client, work) for client in "abcdef"]
    for job in jobs:
        job.join()
    assert counts[0] == 6 * 300
    assert threading.get_ident() not in seen
    assert seen <= set(initialised)
    assert len(initialised) == len(set(initialised)) <= 6


def test_only_the_job_whose_turn_it_is_may_give_it_up(scheduler):
    job = scheduler.start("a", counting([], "a", 2))
    scheduler.step()
    with pytest.raises(RuntimeError, match="whose turn it is"):
        job.checkpoint()


def test_a_job_for_which_there_is_no_thread_fails_and_the_others_go_on(scheduler, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(
            threading.Thread, "start", lambda _: (_ for _ in ()).throw(RuntimeError("can't start new thread"))
        )
        failed = scheduler.start("a", lambda job: None)
        scheduler.step()
    other = scheduler.start("b", lambda job: "done")
    scheduler.run()
    assert (str(failed.error), other.result) == ("can't start new thread", "done")
