"""Work that several jobs want, on toy generators: who moves it on, how urgent it is, and when it is dropped."""

import pytest
from test_scheduler import counting, events, run

from components.jobs.scheduler import Scheduler, Urgency


@pytest.fixture
def scheduler():
    return Scheduler(worker=False)


def test_two_who_want_the_same_share_it(scheduler):
    log, results = [], []

    def taking(name):
        results.append((name, (yield from scheduler.share("model", lambda: counting(log, "made", 6)))))

    jobs = [scheduler.start(name, taking(name)) for name in ("a", "b")]
    run(scheduler)
    assert log == ["made"] * 6
    assert sorted(results) == [("a", 6), ("b", 6)]
    assert sorted(events(jobs[0]) + events(jobs[1])) == [0, 1, 2, 3, 4, 5]  # whose turn it is hears of the step


def test_shared_work_is_as_urgent_as_the_one_who_waits_for_it(scheduler):
    log = []

    def taking():
        yield from scheduler.share("model", lambda: counting(log, "made", 4))

    scheduler.start("a", taking(), Urgency.BACKGROUND)
    scheduler.start("b", taking())
    scheduler.start("c", counting(log, "other", 20), Urgency.BACKGROUND)
    run(scheduler)
    assert log[:4] == ["made"] * 4


def test_shared_work_goes_on_while_anybody_wants_it_and_is_dropped_after(scheduler):
    log, ended = [], []

    def making():
        try:
            yield from counting(log, "made", 100)
        finally:
            ended.append(True)

    def taking():
        yield from scheduler.share("model", making)

    first, second = scheduler.start("a", taking()), scheduler.start("b", taking())
    for _ in range(4):
        scheduler.step()
    first.stop()
    for _ in range(4):
        scheduler.step()
    assert len(log) == 7
    assert not ended
    second.stop()
    run(scheduler)
    assert len(log) == 7
    assert ended == [True]


def test_shared_work_that_somebody_holds_waits_where_it_is(scheduler):
    log, ended = [], []

    def making():
        try:
            yield from counting(log, "made", 6)
        finally:
            ended.append(True)

    def taking():
        with scheduler.holding("model"):
            for _, event in zip(range(3), scheduler.share("model", making), strict=False):
                yield event
            yield from counting(log, "other", 2)
            assert not ended
            yield from scheduler.share("model", making)

    scheduler.start("a", taking())
    run(scheduler)
    assert log == ["made"] * 3 + ["other"] * 2 + ["made"] * 3
    assert ended == [True]


def test_shared_work_that_fails_fails_for_all_and_is_tried_anew_by_the_next(scheduler):
    tries = []

    def failing():
        tries.append(True)
        yield "step"
        raise ValueError("no such model")

    def taking():
        yield from scheduler.share("model", failing)

    jobs = [scheduler.start(name, taking()) for name in "ab"]
    run(scheduler)
    for job in jobs:
        with pytest.raises(ValueError, match="no such model"):
            events(job)
    scheduler.start("c", taking())
    run(scheduler)
    assert len(tries) == 2
