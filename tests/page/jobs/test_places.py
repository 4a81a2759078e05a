"""Places for work outside of the turns: no more than there are, and whoever waits says so and can be stopped."""

import threading

import pytest

from components.jobs.job import Job
from components.jobs.places import Places
from components.jobs.scheduler import Scheduler
from components.jobs.status import Status


def test_two_work_at_a_time_and_the_third_waits_in_words_until_one_is_done() -> None:
    places, scheduler = Places(2, "waiting for a place"), Scheduler()
    begun, may_end = threading.Semaphore(0), threading.Semaphore(0)
    inside, most = [], 0

    def work(job: Job) -> None:
        nonlocal most
        with places.taken(job):
            inside.append(job.client)
            most = max(most, len(inside))
            begun.release()
            may_end.acquire(timeout=60)
            inside.remove(job.client)

    first, second = (scheduler.start(name, work) for name in ("one", "two"))
    for _ in range(2):
        assert begun.acquire(timeout=60)
    assert 0 < places.longest < 60
    third, stopped = scheduler.start("three", work), scheduler.start("four", work)
    waiting = third.events()
    assert next(waiting)[0] == Status("waiting for a place")
    stopped.stop()
    assert stopped.join() is None
    assert sorted(inside) == ["one", "two"]
    may_end.release()
    assert begun.acquire(timeout=60)
    assert "three" in inside
    may_end.release(2)
    assert all(event == Status("waiting for a place") for events in waiting for event in events)
    first.join()
    second.join()
    assert (third.error, inside, most, places.longest) == (None, [], 2, 0.0)


def test_a_place_is_free_again_after_a_failure() -> None:
    places, scheduler = Places(1, "waiting"), Scheduler()

    def fail(job: Job) -> None:
        with places.taken(job):
            raise OSError("no text")

    for _ in range(2):
        with pytest.raises(OSError, match="no text"):
            scheduler.start("one", fail).join()
