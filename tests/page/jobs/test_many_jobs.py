"""Many jobs at once, on toy jobs: threads, memory, and random ones."""

import gc
import os
import sys
import threading
import time
import weakref
from functools import partial
from random import Random

import psutil
import pytest

from components.jobs import threads
from components.jobs.scheduler import Scheduler
from components.jobs.turns import Urgency


@pytest.mark.skipif(sys.platform != "linux", reason="threads have no priority of their own")
@pytest.mark.parametrize(("before", "after"), [(0, threads.NICENESS), (10, 10)])
def test_a_thread_of_jobs_is_at_least_as_nice_as_before(before, after) -> None:
    """Without root it must not try to be less nice: its first job would never run."""
    found = []

    def look() -> None:
        thread = threading.get_native_id()
        os.setpriority(os.PRIO_PROCESS, thread, max(before, os.getpriority(os.PRIO_PROCESS, thread)))
        threads.lower_priority()
        found.append(os.getpriority(os.PRIO_PROCESS, thread))

    thread = threading.Thread(target=look)
    thread.start()
    thread.join()
    assert found == [max(after, os.getpriority(os.PRIO_PROCESS, 0))]


def test_a_thousand_jobs_leave_no_threads_and_nothing_that_they_made(monkeypatch):
    """Eight at a time, in pairs that share; a model of theirs is a megabyte."""
    monkeypatch.setattr(threads, "IDLE_SECONDS", 0.1)
    before, memory = set(threading.enumerate()), psutil.Process().memory_info().rss

    def making(job):
        for _ in range(3):
            job.checkpoint()
        return bytearray(2**20)

    def some(client):
        for count in range(125):
            made.append(len(scheduler.start(client, lambda job, key=count: job.share(key, making)).join()))

    made = []
    scheduler = Scheduler()
    clients = [threading.Thread(target=some, args=(str(client),)) for client in range(8)]
    for client in clients:
        client.start()
    for client in clients:
        client.join()
    assert made == [2**20] * 1000
    assert not scheduler.jobs
    assert not scheduler._shared
    for thread in set(threading.enumerate()) - before:
        thread.join(30)
    assert set(threading.enumerate()) <= before
    assert psutil.Process().memory_info().rss - memory < 50 * 2**20


class Failed(Exception):
    """What jobs of the tests below fail with on purpose."""


class Model:
    """Something large that a job holds."""


def test_a_failed_job_leaves_nothing_that_it_held_before_any_garbage_collection():
    """Neither variables nor what its closures hold."""
    held = []

    def failing(job):
        model = Model()
        held.append(weakref.ref(model))
        try:
            dict(model)
        except TypeError as error:
            failed = Failed()
            error.__cause__ = failed  # a cycle of causes is no endless loop
            raise failed from error

    def sharing(job):
        model = Model()
        held.append(weakref.ref(model))

        def uses_model(job):
            assert model is not None
            failing(job)

        job.share("model", uses_model)

    gc.disable()
    try:
        for work in (failing, sharing):
            job = Scheduler().start("somebody", work)
            with pytest.raises(Failed):
                job.join()
        assert [model() for model in held] == [None] * 3
    finally:
        gc.enable()


def test_a_stopped_job_leaves_nothing_that_it_held_before_any_garbage_collection():
    held = []

    def endless(job):
        model = Model()
        held.append(weakref.ref(model))

        def uses_model(job):
            while model is not None:
                job.emit("going on")

        job.share("model", uses_model)

    gc.disable()
    try:
        job = Scheduler().start("somebody", endless)
        next(events := job.events())
        job.stop()
        assert list(events) == []
        deadline = time.monotonic() + 60
        while held[0]() is not None and time.monotonic() < deadline:  # its thread may still be on its way out
            time.sleep(0.01)
        assert held[0]() is None
    finally:
        gc.enable()


@pytest.mark.parametrize("seed", range(3))
def test_whatever_jobs_do_one_runs_at_a_time_and_all_come_to_an_end(seed):
    """Jobs that share, hold, wait, fail and are stopped at random, two hundred of six clients."""
    running, overlaps, wrong = [], [], []

    def check_alone(job):
        running.append(job)
        time.sleep(0)  # lets another thread run, were one to
        overlaps.extend(running[1:])
        running.pop()

    def act(job, rng, depth=0):
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

    def run_some(client):
        rng = Random(100 * seed + client)
        for _ in range(33):
            job = scheduler.start(str(client), partial(act, rng=Random(rng.random())))
            if rng.random() < 0.2:
                job.stop()
            try:
                for _ in job.events():
                    if rng.random() < 0.05:
                        break
            except Failed:
                pass
            except BaseException as problem:
                wrong.append(problem)

    scheduler = Scheduler()
    clients = [threading.Thread(target=run_some, args=(client,), daemon=True) for client in range(6)]
    for client in clients:
        client.start()
    for client in clients:
        client.join(60)
    assert not any(client.is_alive() for client in clients)
    assert not wrong
    assert not overlaps
    until = time.monotonic() + 30
    while (scheduler.jobs or scheduler._cancelled) and time.monotonic() < until:  # what was stopped while it was away
        time.sleep(0.01)
    assert not scheduler.jobs
    assert not scheduler._cancelled
    assert not scheduler._shared
    assert not scheduler._held
