"""Where many clients wait, as a class at one address does: the order of turns, and what those who wait are told."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from itertools import pairwise

import pytest
from stepping import Clock, Stepped, counting

from components.i18n.language import translate, use_language
from components.jobs import jobs as running
from components.jobs import turns, waiting
from components.jobs.job import Caller, Job
from components.jobs.jobs import Jobs
from components.jobs.status import Status
from components.jobs.turns import (
    BRIEF,
    FEW,
    KEPT,
    KEPT_SEEN,
    SEEN_SHARE,
    SHARED,
    SHARED_SECONDS,
    Account,
    Turns,
    Urgency,
)
from components.jobs.waiting import Line, Waiting
from components.ui import formatting

CLASS = Caller("127.0.0.2")
MANY = FEW + 2
STEP = 0.125  # seconds of a turn; sums of it are exact


class Crowd:
    """Jobs on a scheduler that is stepped; each turn takes `STEP` seconds, and is noted in the log."""

    def __init__(self, scheduler: Stepped, clock: Clock) -> None:
        self.scheduler, self.clock, self.log = scheduler, clock, []

    def join(self, names: Sequence, steps: int, result: int = -1, urgency: Urgency = Urgency.USUAL, **where) -> None:
        """A job for each name, of a client of its own. Its client sees a result after step `result`."""
        for name in names:
            client, caller = f"{name} {len(self.scheduler.jobs)}", where.get("caller", CLASS)
            self.scheduler.start(client, counting(self.log, name, steps, self.clock, STEP, result), urgency, caller)

    def step(self, count: int) -> list:
        """Let so many turns pass; returns whose they were."""
        before = len(self.log)
        while len(self.log) < before + count and self.scheduler.step():
            pass
        return self.log[before:]

    def until_all_see_a_result(self) -> None:
        while any(not job.has_result for job in self.scheduler.jobs if job.urgency is not Urgency.BACKGROUND):
            self.scheduler.step()


@pytest.fixture
def crowd(scheduler, clock) -> Crowd:
    return Crowd(scheduler, clock)


@pytest.mark.parametrize("addresses", [1, MANY])
def test_one_after_the_other_is_served_and_none_waits_for_the_work_of_all(crowd, addresses) -> None:
    """A crowd is many clients of one address, or many addresses."""
    for client in range(MANY):
        crowd.join([client], 20, caller=Caller(f"127.0.1.{client % addresses}"))
    assert sorted(crowd.step(MANY)) == [*range(MANY)]  # the first turn of each comes first
    assert crowd.step(38) == [0] * 19 + [1] * 19  # until only a few are left


def test_the_rest_of_one_answer_comes_after_the_other(crowd) -> None:
    steps = round(0.8 * KEPT_SEEN / STEP)
    crowd.join(range(MANY), steps, result=1)
    assert sorted(crowd.step(2 * MANY)) == sorted([*range(MANY)] * 2)  # each notes its result in its second turn
    rest = crowd.step(2 * (steps - 2))
    assert rest == sorted(rest)
    assert len(set(rest)) == 2  # until only a few are left


def test_nobody_keeps_the_turn_for_long(crowd) -> None:
    crowd.join(range(MANY), 200)
    log = crowd.step(round(1.5 * MANY * KEPT / STEP))
    runs = [index for index in range(1, len(log)) if log[index] != log[index - 1]]
    longest = max(end - start for start, end in zip([0, *runs], runs, strict=False))
    assert longest <= 2 * KEPT / STEP + 2
    assert set(log) == {*range(MANY)}


def asking(log: list, key: str, steps: int, clock: Clock):
    """A job that waits for the work under `key`."""
    return lambda job: job.share(key, counting(log, key, steps, clock, STEP))


def test_what_most_wait_for_comes_first(crowd) -> None:
    askers = {"rare": 1, "usual": 2, "frequent": MANY}
    for key, clients in askers.items():
        for client in range(clients):
            crowd.scheduler.start(f"{client} of {key}", asking(crowd.log, key, 20, crowd.clock), caller=CLASS)
    log = crowd.step(60)
    last = {key: max(turn for turn, name in enumerate(log) if name == key) for key in askers}
    assert last["frequent"] < last["usual"] < last["rare"]


@pytest.mark.parametrize("clients", [MANY, 4 * MANY])
def test_long_work_that_many_wait_for_delays_others_by_some_seconds_alone(clock, monkeypatch, clients) -> None:
    def waited(shared: float) -> float:
        monkeypatch.setattr(turns, "SHARED", shared)
        crowd = Crowd(Stepped(clock), clock)
        for client in range(clients):
            crowd.scheduler.start(str(client), asking(crowd.log, "long", 100_000, clock), caller=CLASS)
        crowd.join(["alone"], 20)
        while crowd.log.count("alone") < 20:
            assert crowd.scheduler.step()
        for job in list(crowd.scheduler.jobs):
            job.stop()
        crowd.scheduler.run()
        return crowd.log.count("long") * STEP

    assert waited(SHARED) <= waited(0.0) + SHARED_SECONDS + KEPT


@pytest.mark.parametrize("turns_to_result", [0, 1, 5, 30])
def test_the_share_of_what_is_seen_holds_while_others_come_and_get_results(turns_to_result) -> None:
    """Nor does one short turn, after so much use that none comes soon, lengthen it."""
    turns, seen = Turns(), [Account(f"seen {client}", "class", seconds_to_result=0.0) for client in range(3)]
    unseen = {Account(f"new {client}", "class"): 0 for client in range(MANY)}
    for account in [*seen, *unseen]:
        turns.admit(account, [])
        turns.count(account, STEP)
    for seconds in () if turns_to_result else (60.0, 1e-3):
        turns.count(seen[0], seconds)
    used_by_seen = 0
    for step in range(400):
        chosen = turns.choose([*seen, *unseen])
        used_by_seen += chosen.has_result
        if chosen in unseen:
            unseen[chosen] += 1
            if unseen[chosen] == turns_to_result:  # its client sees a result, and another one comes
                chosen.seconds_to_result = chosen.seconds
                del unseen[chosen]
                unseen[follower := Account(f"later {step}", "class")] = 0
                turns.admit(follower, [])
        turns.count(chosen, STEP)
    assert used_by_seen == pytest.approx(400 / (1 + SEEN_SHARE), abs=16)


def test_a_crowd_takes_no_turns_of_another_address_and_has_its_share_beside_it(crowd) -> None:
    crowd.join(["alone"], 400, result=0, caller=Caller("127.0.0.3"))
    crowd.join(["seen"] * 3, 400, result=0)
    crowd.join(["new"] * MANY, 400)
    log = crowd.step(400)
    assert log.count("alone") == pytest.approx(200, abs=4)
    assert log.count("seen") == pytest.approx(200 / (1 + SEEN_SHARE), abs=8)


def test_addresses_take_turns_whatever_the_number_of_their_clients_and_urgent_jobs(crowd) -> None:
    crowd.join(["greedy"] * 60, 10, urgency=Urgency.FIRST)
    crowd.join(["modest"], 4, caller=Caller("127.0.0.3"))
    crowd.join(["hidden"], 4, caller=Caller())  # by a proxy
    log = crowd.step(12)
    assert log.count("modest") == log.count("hidden") == 4


def test_the_first_token_of_an_answer_comes_first(crowd) -> None:
    crowd.join(["slice"] * MANY, 50)
    crowd.step(10)
    crowd.join(["answer"], 50, 1, Urgency.FIRST)
    log = crowd.step(30)
    assert log[0] == "answer"
    assert log.count("answer") <= 15  # the rest has the share of what clients see already


def test_turns_in_between_take_the_turn_from_nobody(crowd) -> None:
    crowd.join(["seen"] * MANY, 200, result=1)
    crowd.join(["background"], 200, urgency=Urgency.BACKGROUND)
    crowd.until_all_see_a_result()
    crowd.join(range(MANY), 20)
    own = [name for name in crowd.step(4 * 20 + 40) if isinstance(name, int)][MANY : 4 * 20]
    assert sum(first != second for first, second in pairwise(own)) <= 4


def test_what_is_cached_does_not_wait_in_line(crowd) -> None:
    crowd.join(["slice"] * MANY, 50)
    crowd.step(2 * MANY)
    crowd.log.clear()
    cached = crowd.scheduler.start("late", counting(crowd.log, "cached", 3, crowd.clock, BRIEF / 4), caller=CLASS)
    for _ in range(4):
        crowd.scheduler.step()
    assert cached.ended
    assert crowd.log == ["cached"] * 3


def test_a_shared_result_is_seen_by_all_who_wait_for_it(scheduler, clock) -> None:
    jobs = [scheduler.start(name, lambda job: job.share("slice", counting([], "", 4, result=1))) for name in "ab"]
    while not jobs[0].has_result:
        scheduler.step()
    assert jobs[1].has_result


def test_a_class_of_sixty_at_one_address_is_not_refused_and_another_address_has_places(monkeypatch) -> None:
    """Each student measures a setting, has an answer written, and has its costs measured in the background."""
    monkeypatch.setenv("INTRASLICE_HOSTED", "1")
    jobs, address, begun = Jobs(), ["127.0.0.2"], []
    jobs.caller, done = lambda: Caller(address[0]), threading.Event()

    def work(job: Job) -> None:
        job.emit(Status("working"))
        with job.waiting():
            done.wait()

    def begin(client: str, kind: str) -> str:
        begun.append(jobs.run(client, kind, work))
        return next(begun[-1]).kind

    kinds = ("measure", "answer", "costs")
    assert {begin(f"student {number}", kind) for number in range(60) for kind in kinds} == {"busy"}
    address[0] = "127.0.0.3"
    assert begin("somebody", "measure") == "busy"
    done.set()
    assert not any(event.kind == "error" for events in begun for event in events)


# What those who wait are told


@pytest.fixture
def line(monkeypatch) -> Line:
    monkeypatch.setattr(waiting, "LINE_SECONDS", -1.0)
    return Line()


def ended(seconds: float, result: float | None = None) -> Job:
    job = Stepped().start("x", lambda job: None)
    job.seconds, job.seconds_to_result = seconds, result
    return job


def test_a_job_that_waits_tells_how_many_come_before_it_and_how_long_they_take(crowd, line) -> None:
    crowd.join(range(MANY), 20)
    scheduler, kinds = crowd.scheduler, dict.fromkeys(crowd.scheduler.jobs, "measure")
    crowd.step(8)
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


def test_what_several_wait_for_counts_once_and_a_clients_own_jobs_do_not(scheduler, clock, line) -> None:
    work = counting([], "made", 400, clock, STEP)
    jobs = [scheduler.start(f"{n}", lambda job: job.share("slice", work), caller=CLASS) for n in range(FEW + 1)]
    jobs += [scheduler.start("last", counting([], "", 400, clock, STEP), Urgency.BACKGROUND, CLASS) for _ in range(2)]
    while not all(job.wait for job in jobs[: FEW + 1]):
        scheduler.step()
    line.note("measure", ended(9.0, 4.5))
    told = line.status(jobs[-1], scheduler, dict.fromkeys(jobs, "measure"))
    assert told.text == f"Waiting; jobs ahead: {FEW + 1}"
    assert told.seconds_left <= 5


def test_who_has_the_turn_or_is_away_does_not_wait(crowd, line) -> None:
    scheduler, seen = crowd.scheduler, []

    def work(job: Job) -> None:
        seen.append(line.status(job, scheduler, {}))
        job.checkpoint()

    crowd.join(range(2), 20)
    job = scheduler.start("a", work)
    while not seen:
        scheduler.step()
    assert seen == [None]
    with scheduler.lock:
        job.is_away = True
    assert line.status(job, scheduler, {}) is None


def test_an_estimate_is_of_the_last_jobs_until_their_first_result(crowd, line) -> None:
    crowd.join(range(2), 20)
    for seconds, result in ((100.0, 10.0), (20.0, None)):
        line.note("evaluate 17", ended(seconds, result))
    stopped = ended(500.0)
    stopped.stopped = True
    line.note("evaluate 3", stopped)
    jobs = crowd.scheduler.jobs
    told = line.status(jobs[1], crowd.scheduler, dict.fromkeys(jobs, "evaluate 18"))
    assert told.seconds_left == 15  # of 10 and 20 s, the newest with less weight


def test_the_page_tells_it_once_in_a_while_and_again_after_the_job_has_done_something(crowd, line, monkeypatch) -> None:
    monkeypatch.setattr(running, "PATIENCE", 0.01)
    monkeypatch.setattr(running, "AGAIN", 0.0)
    jobs = Jobs(crowd.scheduler)
    crowd.scheduler.start("other", counting([], "", 20))  # whose turns take as long as those of the job

    def work(job: Job) -> None:
        job.emit(Status("working"))
        for _ in range(9):
            job.checkpoint()

    events = jobs.run("me", "answer", work)
    assert next(events) == Waiting("Waiting; jobs ahead: 1")
    for _ in range(4):
        crowd.scheduler.step()
    assert next(events).text == "working"
    assert next(events) == Waiting("Waiting; jobs ahead: 1")
    crowd.scheduler.run()
    assert list(events) == []


def test_the_words_are_those_of_the_language() -> None:
    status = Waiting("", seconds_left=30)
    assert "about 30 s" in formatting.status_text(status)
    with use_language("de"):
        assert translate(formatting.status_text(status)) == ", noch etwa 30 s"
