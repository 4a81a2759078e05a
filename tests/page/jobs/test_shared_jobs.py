"""Work that several jobs want, on toy jobs: who pays for it, how urgent it is, and when it is cancelled."""

import threading

import pytest
from test_scheduler import counting, events

from components.jobs.turns import Urgency


def taking(key, work):
    """A job that wants the shared work."""
    return lambda job: job.share(key, work)


def test_two_who_want_the_same_share_it_and_both_hear_of_it(scheduler):
    log = []
    jobs = [scheduler.start(name, taking("model", counting(log, "made", 6))) for name in ("a", "b")]
    scheduler.run()
    assert log == ["made"] * 6
    assert [job.result for job in jobs] == [6, 6]
    assert [events(job) for job in jobs] == [[0, 1, 2, 3, 4, 5]] * 2


def test_shared_work_is_as_urgent_as_the_one_who_waits_for_it(scheduler):
    log = []
    scheduler.start("a", taking("model", counting(log, "made", 4)), Urgency.BACKGROUND)
    scheduler.start("b", taking("model", counting(log, "made", 4)))
    scheduler.start("c", counting(log, "other", 20), Urgency.BACKGROUND)
    scheduler.run()
    assert log[:4] == ["made"] * 4


def test_shared_work_is_paid_for_by_those_who_wait(scheduler, clock):
    """So it has the turns of all of them, and a client who waits for it has no more turns than another."""
    log = []
    work = counting(log, "made", 40, clock, 0.1)
    takers = [scheduler.start(name, taking("model", work)) for name in ("a", "b")]
    other = scheduler.start("c", counting(log, "other", 40, clock, 0.1))
    for _ in range(42):
        scheduler.step()
    assert log.count("made") == pytest.approx(2 * log.count("other"), abs=2)
    assert takers[0].seconds == pytest.approx(takers[1].seconds, abs=0.2)
    assert takers[0].seconds == pytest.approx(other.seconds, abs=0.2)


def test_who_pays_for_too_much_leaves_and_the_others_go_on(scheduler, clock):
    log = []
    work = counting(log, "made", 30, clock, 1.0)
    hasty = scheduler.start("a", taking("model", work), max_seconds=3)
    patient = scheduler.start("b", taking("model", work))
    scheduler.run()
    with pytest.raises(TimeoutError, match="reached its limit"):
        events(hasty)
    assert patient.result == len(log) == 30


def test_a_panic_of_shared_work_is_an_error_for_all_who_wait_and_the_next_begins_anew(scheduler):
    class Panic(BaseException):
        """As tokenizers raise it."""

    def panic(job):
        job.checkpoint()
        raise Panic("called `Option::unwrap()`")

    jobs = [scheduler.start(name, taking("text", panic)) for name in ("a", "b")]
    scheduler.run()
    for job in jobs:
        with pytest.raises(RuntimeError, match="Panic"):
            events(job)
    job = scheduler.start("c", taking("text", counting([], "read", 3)))
    scheduler.run()
    assert job.result == 3


def test_shared_work_goes_on_while_anybody_wants_it_and_is_cancelled_after(scheduler):
    log, ended = [], []

    def making(job):
        try:
            counting(log, "made", 100)(job)
        finally:
            ended.append(True)

    first, second = (scheduler.start(name, taking("model", making)) for name in ("a", "b"))
    while len(log) < 4:
        scheduler.step()
    first.stop()
    while len(log) < 7:
        scheduler.step()
    assert not ended
    second.stop()
    scheduler.run()
    assert len(log) == 7
    assert ended == [True]
    assert not scheduler.jobs


def test_shared_work_that_somebody_holds_waits_where_it_is(scheduler):
    log, ended = [], []

    def making(job):
        try:
            counting(log, "made", 6)(job)
        finally:
            ended.append(True)

    def work(job):
        with job.holding("model"):
            with job.begin("model", making) as shared:
                assert not shared.wait(until=lambda: len(log) >= 3)
            counting(log, "other", 2)(job)
            assert not ended
            job.share("model", making)

    scheduler.start("a", work)
    scheduler.run()
    assert log == ["made"] * 3 + ["other"] * 2 + ["made"] * 3
    assert ended == [True]


def test_what_somebody_held_ends_when_they_leave(scheduler):
    log = []

    def work(job):
        with job.holding("model"), job.begin("model", counting(log, "made", 6)) as shared:
            assert not shared.wait(until=lambda: len(log) >= 3)
        counting(log, "other", 2)(job)

    scheduler.start("a", work)
    scheduler.run()
    assert log == ["made"] * 3 + ["other"] * 2


def test_shared_work_that_fails_fails_for_all_and_is_tried_anew_by_the_next(scheduler):
    tries = []

    def failing(job):
        tries.append(True)
        job.emit("step")
        raise ValueError("no such model")

    jobs = [scheduler.start(name, taking("model", failing)) for name in "ab"]
    scheduler.run()
    for job in jobs:
        with pytest.raises(ValueError, match="no such model"):
            events(job)
    scheduler.start("c", taking("model", failing))
    scheduler.run()
    assert len(tries) == 2


def test_shared_work_shares_other_work(scheduler):
    log = []

    def slicing(job):
        calibrated = job.share("calibration", counting(log, "calibrated", 3))
        counting(log, "sliced", 2)(job)
        return calibrated + 2

    whole = scheduler.start("a", taking("slice", slicing))
    part = scheduler.start("b", taking("calibration", counting(log, "calibrated", 3)))
    scheduler.run()
    assert log == ["calibrated"] * 3 + ["sliced"] * 2
    assert (whole.result, part.result) == (5, 3)
    assert events(whole) == [0, 1, 2, 0, 1]


def test_cancelling_the_last_who_waits_cancels_all_that_they_wait_for(scheduler):
    ended = []

    def inner(job):
        try:
            counting([], "", 100)(job)
        finally:
            ended.append("inner")

    def outer(job):
        try:
            job.share("inner", inner)
        finally:
            ended.append("outer")

    job = scheduler.start("a", taking("outer", outer))
    for _ in range(5):
        scheduler.step()
    job.stop()
    scheduler.run()
    assert sorted(ended) == ["inner", "outer"]


def test_a_job_may_do_its_own_work_beside_what_it_shares(scheduler, clock):
    """As answers are written while other columns' models are made."""
    log = []

    def work(job):
        with job.begin("model", counting(log, "made", 6, clock, 0.1)) as shared:
            while not shared.wait(seconds=0.2):
                counting(log, "token", 1)(job)
            return shared.result()

    job = scheduler.start("a", work)
    scheduler.run()
    assert log == ["made", "made", "token"] * 2 + ["made", "made"]
    assert job.result == 6


def test_a_job_beside_shared_work_gives_it_a_turn_however_long_the_others_take(scheduler, clock):
    log = []

    def work(job):
        with job.begin("model", counting(log, "made", 2, clock, 0.1)) as shared:
            while not shared.wait(seconds=0.2):
                counting(log, "token", 1)(job)

    scheduler.start("b", counting(log, "other", 9, clock, 10.0))
    scheduler.start("a", work)
    scheduler.run()
    assert log.count("made") == 2


def test_nobody_waits_beside_work_that_is_away(scheduler):
    """Tokens go on while a model is downloaded; without a limit the job waits, and others have its turns."""
    log, arrived = [], threading.Event()

    def download(job):
        with job.waiting():
            arrived.wait()
        return "model"

    def work(job):
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


def test_work_that_has_ended_is_done_anew_for_who_comes_then_though_somebody_uses_its_result(scheduler):
    made = []

    def using(job):
        with job.begin("model", lambda job: made.append(job) or len(made)) as shared:
            result = shared.result()
            job.checkpoint()
            return result

    first = scheduler.start("a", using)
    while not made:
        scheduler.step()
    scheduler.step()  # it has the result, and uses it
    second = scheduler.start("b", taking("model", lambda job: made.append(job) or len(made)))
    scheduler.run()
    assert (first.result, second.result) == (1, 2)
