"""How jobs share work, hold it, end and wait; and threads that no test steps: one runs, and nothing is left behind."""

import gc
import os
import sys
import threading
import time
import weakref
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from functools import partial
from random import Random

import psutil
import pytest
from stepping import Failed, counting, events, until

from components import limits
from components.jobs import threads
from components.jobs.job import Job, Scheduler, Urgency
from components.jobs.status import Status
from components.jobs.waiting import JobSemaphore
from components.state.caches import return_freed_memory


@pytest.mark.skipif(sys.platform != "linux", reason="threads have no priority of their own")
@pytest.mark.parametrize(("before", "after"), [(0, threads.NICENESS), (10, 10)])
def test_a_thread_of_jobs_is_at_least_as_nice_as_before(before, after) -> None:
    """Without root it must not try to be less nice: its first job would never run."""

    def found() -> int:
        thread = threading.get_native_id()
        os.setpriority(os.PRIO_PROCESS, thread, max(before, os.getpriority(os.PRIO_PROCESS, thread)))
        threads.lower_priority()
        return os.getpriority(os.PRIO_PROCESS, thread)

    with ThreadPoolExecutor(1) as pool:
        assert pool.submit(found).result() == max(after, os.getpriority(os.PRIO_PROCESS, 0))


class Model:
    """Something large that a job holds."""


@pytest.mark.parametrize("is_stopped", [False, True])
def test_a_job_that_fails_or_is_stopped_leaves_nothing_that_it_held_before_any_garbage_collection(is_stopped) -> None:
    """Neither variables nor what its closures hold, nor those of shared work."""
    held = []

    def working(job: Job) -> None:
        model = Model()
        held.append(weakref.ref(model))
        while is_stopped and model is not None:
            job.emit("going on")
        try:
            dict(model)
        except TypeError as error:
            failed = Failed()
            error.__cause__ = failed  # a cycle of causes is no endless loop
            raise failed from error

    def sharing(job: Job) -> None:
        model = Model()
        held.append(weakref.ref(model))

        def uses_model(job: Job) -> None:
            assert model is not None
            working(job)

        job.share("model", uses_model)

    gc.disable()
    try:
        for work in (working, sharing):
            job = Scheduler().start("client", work)
            if is_stopped:
                next(listening := job.events())
                job.stop()
                assert list(listening) == []
            else:
                with pytest.raises(Failed):
                    job.join()
        if is_stopped:  # its thread may still be on its way out
            until(lambda: not any(model() for model in held))
        assert [model() for model in held] == [None] * 3
    finally:
        gc.enable()


@pytest.mark.parametrize("seed", range(3))
def test_whatever_jobs_do_one_runs_at_a_time_and_nothing_is_left_of_them(seed, monkeypatch) -> None:
    """Jobs that share, hold, wait, fail and are stopped at random, two hundred of six clients; each makes a model."""
    monkeypatch.setattr(limits, "IDLE_THREAD_SECONDS", 0.1)
    before, memory = set(threading.enumerate()), psutil.Process().memory_info().rss
    initialised, running, overlaps = [], [], []

    def check_alone(job: Job) -> None:
        running.append(job)
        time.sleep(0)  # lets another thread run, were one to
        overlaps.extend(running[1:])
        running.pop()

    def act(job: Job, rng: Random, depth: int = 0) -> bytearray:
        for _ in range(rng.randrange(1, 8)):
            check_alone(job)
            choice, key = rng.randrange(8), (depth, rng.randrange(3))
            work = partial(act, rng=Random(rng.random()), depth=depth + 1)
            if choice == 0:
                job.urgency = rng.choice(list(Urgency))
            elif choice == 1:
                with job.waiting():
                    time.sleep(rng.random() / 1000)
            elif choice == 2:
                job.sleep(rng.random() / 1000)
            elif choice == 3 and depth < 2:
                job.share(key, work)
            elif choice == 4 and depth < 2:
                with job.begin(key, work) as shared:
                    while not shared.wait(seconds=rng.random() / 1000):
                        job.emit("beside")
            elif choice == 5 and depth < 2:
                with job.holding(key), job.begin(key, work) as shared:
                    shared.wait(until=lambda: rng.random() < 0.5)
            elif choice == 6 and rng.random() < 0.05:
                raise Failed
            else:
                job.emit("step")
        return bytearray(2**20)

    def run_some(client: int) -> None:
        rng = Random(100 * seed + client)
        for _ in range(33):
            job = scheduler.start(str(client), partial(act, rng=Random(rng.random())))
            if rng.random() < 0.2:
                job.stop()
            with suppress(Failed):
                for _ in job.events():
                    if rng.random() < 0.05:
                        break

    scheduler = Scheduler(initialise=lambda: initialised.append(threading.get_ident()))
    with ThreadPoolExecutor(6) as pool:
        list(pool.map(run_some, range(6), timeout=60))
    assert overlaps == []
    until(lambda: not (scheduler.jobs or scheduler._cancelled))  # what was stopped while it was away
    assert (scheduler._shared, dict(scheduler._held), bool(initialised)) == ({}, {}, True)
    until(lambda: not any(thread.name == "job" and thread not in before for thread in threading.enumerate()))
    gc.collect()
    return_freed_memory()  # the C library keeps some for each thread
    until(lambda: psutil.Process().memory_info().rss - memory < 50 * 2**20)


def test_two_have_a_place_and_the_third_waits_in_words_until_one_is_done(scheduler, monkeypatch) -> None:
    monkeypatch.setattr(Job, "sleep", lambda job, seconds: job.checkpoint())  # between two attempts
    places, inside, may_end = JobSemaphore(2, "waiting for a place"), [], set()

    def work(job: Job) -> None:
        with places.held(job):
            inside.append(job.client)
            while job.client not in may_end:
                job.checkpoint()
            inside.remove(job.client)
            if job.client == "one":  # whose place is free again, too
                raise Failed

    first, _, third, stopped = (scheduler.start(name, work) for name in ("one", "two", "three", "four"))
    for client, expected in (("", ["one", "two"]), ("one", ["two", "three"])):
        may_end.add(client)
        for _ in range(20):
            scheduler.step()
        assert inside == expected
        assert 0 < places.longest < 60
        stopped.stop()
    may_end |= {"two", "three"}
    scheduler.run()
    assert set(events(third)) == {Status("waiting for a place")}
    assert (type(first.error), third.error, stopped.ended) == (Failed, None, True)
    assert (inside, places.longest) == ([], 0.0)


def test_shared_work_that_is_held_waits_where_it_is_and_ends_with_the_last_job_that_holds_it(scheduler) -> None:
    log: list[str] = []

    def making(job: Job) -> None:
        try:
            counting(log, "made", 6)(job)
        finally:
            log.append("ended")

    def work(job: Job, returns: bool) -> None:
        with job.holding("model"):
            with job.begin("model", making) as shared:
                assert not shared.wait(until=lambda: len(log) >= 3)
            counting(log, "other", 2)(job)
            if returns:
                job.share("model", making)

    for returns in (True, False):
        log.clear()
        scheduler.start("a", partial(work, returns=returns))
        scheduler.run()
        assert log == ["made"] * 3 + ["other"] * 2 + ["made"] * 3 * returns + ["ended"]


def test_a_job_beside_shared_work_gives_it_a_turn_however_long_the_others_take(scheduler, clock) -> None:
    """As answers are written while other columns' models are made."""
    log = []

    def work(job: Job) -> int:
        with job.begin("model", counting(log, "made", 6, clock, 0.125)) as shared:
            while not shared.wait(seconds=0.25):
                counting(log, "token", 1)(job)
            return shared.result()

    job = scheduler.start("a", work)
    scheduler.run()
    assert (log, job.result) == (["made", "made", "token"] * 3, 6)
    log.clear()
    scheduler.start("b", counting(log, "other", 9, clock, 10.0))
    scheduler.start("a", work)
    scheduler.run()
    assert log.count("made") == 6


def test_no_job_waits_beside_work_that_is_away(scheduler) -> None:
    """Tokens go on while a model is downloaded; without a limit the job waits, and others have its turns."""
    log, arrived = [], threading.Event()

    def download(job: Job) -> str:
        with job.waiting():
            arrived.wait()
        return "model"

    def work(job: Job) -> str:
        with job.begin("model", download) as shared:
            while not shared.wait(seconds=1.0) and len(log) < 5:
                counting(log, "token", 1)(job)
            return shared.result()

    job = scheduler.start("a", work)
    scheduler.run()
    assert log == ["token"] * 5
    arrived.set()
    scheduler.until(lambda: job.wait and not job.wait.work.is_away)
    scheduler.run()
    assert job.result == "model"


def test_what_tries_again_or_tidies_up_badly_ends_all_the_same_and_no_other(scheduler) -> None:
    log = []

    def trying(job: Job) -> None:
        try:
            counting(log, "a", 100)(job)
        except Exception:
            log.append("tried again")
        finally:
            raise Failed

    job, other = scheduler.start("a", trying), scheduler.start("b", counting([], "b", 2))
    scheduler.step()
    job.stop()
    scheduler.run()
    assert (log, job.ended, events(other)) == (["a"], True, [0, 1])


def test_neither_a_stopped_job_that_is_away_nor_its_sleep_is_waited_for() -> None:
    arrived, came_back, scheduler = threading.Event(), [], Scheduler()

    def slow(job: Job) -> None:
        with job.waiting():
            arrived.wait()
        job.emit("never")
        came_back.append(job)

    away, sleeping = (scheduler.start("a", work) for work in (slow, lambda job: job.sleep(1e6)))
    until(lambda: away.is_away and sleeping.is_away)
    assert scheduler.start("b", lambda job: "done").join() == "done"
    for job in (away, sleeping):
        job.stop()
        assert events(job) == []
    assert not away.ended
    arrived.set()
    until(lambda: away.ended and sleeping.ended)
    assert came_back == []


def test_only_the_job_whose_turn_it_is_may_give_it_up(scheduler) -> None:
    job = scheduler.start("a", counting([], "a", 2))
    scheduler.step()
    with pytest.raises(RuntimeError, match="whose turn it is"):
        job.checkpoint()


def test_a_job_for_which_there_is_no_thread_fails_and_the_others_go_on(scheduler, monkeypatch) -> None:
    def fail(_: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    with monkeypatch.context() as patch:
        patch.setattr(threading.Thread, "start", fail)
        failed = scheduler.start("a", lambda job: None)
        scheduler.step()
    other = scheduler.start("b", lambda job: "done")
    scheduler.run()
    assert (str(failed.error), other.result) == ("can't start new thread", "done")
