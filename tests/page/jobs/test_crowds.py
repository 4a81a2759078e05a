"""The order of turns where many clients of one network address wait, as a class does, on toy jobs."""

import threading

import pytest
from stepping import Stepped
from test_scheduler import counting

from components.jobs import turns
from components.jobs.job import Caller
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

CLASS = Caller("127.0.0.2")
MANY = FEW + 2
STEP = 0.125  # seconds of a turn; sums of it are exact


def showing(log, name, steps, clock):
    """A job whose client sees a result after the first of its steps, which take `STEP` seconds each."""

    def work(job):
        counting(log, name, 1, clock, STEP)(job)
        job.note_result()
        counting(log, name, steps - 1, clock, STEP)(job)

    return work


@pytest.mark.parametrize("callers", [[CLASS] * MANY, [Caller(f"127.0.1.{client}") for client in range(MANY)]])
def test_in_a_crowd_one_after_the_other_is_served_and_none_waits_for_the_work_of_all(scheduler, clock, callers):
    """A crowd is many clients of one address, or many addresses."""
    log = []
    for client, caller in enumerate(callers):
        scheduler.start(str(client), counting(log, client, 20, clock, STEP), caller=caller)
    scheduler.run()
    assert sorted(log[:MANY]) == [*range(MANY)]  # the first turn of each comes first
    assert log[MANY:][:38] == [0] * 19 + [1] * 19  # until only a few are left


def test_in_a_crowd_the_rest_of_one_answer_comes_after_the_other(scheduler, clock):
    log, steps = [], round(0.8 * KEPT_SEEN / STEP)
    for client in range(MANY):
        scheduler.start(str(client), showing(log, client, steps, clock), caller=CLASS)
    scheduler.run()
    assert sorted(log[: 2 * MANY]) == sorted([*range(MANY)] * 2)  # each notes its result in its second turn
    rest = log[2 * MANY :][: 2 * (steps - 2)]
    assert rest == sorted(rest)
    assert len(set(rest)) == 2  # until only a few are left


def test_in_a_crowd_nobody_keeps_the_turn_for_long(scheduler, clock):
    log = []
    for client in range(MANY):
        scheduler.start(str(client), counting(log, client, 200, clock, STEP), caller=CLASS)
    while clock.now < 1.5 * MANY * KEPT:
        scheduler.step()
    runs = [index for index in range(1, len(log)) if log[index] != log[index - 1]]
    longest = max(end - start for start, end in zip([0, *runs], runs, strict=False))
    assert longest <= 2 * KEPT / STEP + 2
    assert min(map(log.count, range(MANY))) > 0


def asking(log, key, steps, clock):
    """A job that waits for the work under `key`."""
    return lambda job: job.share(key, counting(log, key, steps, clock, STEP))


def test_in_a_crowd_what_most_wait_for_comes_first(scheduler, clock):
    log, askers = [], {"rare": 1, "usual": 2, "frequent": MANY}
    for key, clients in askers.items():
        for client in range(clients):
            scheduler.start(f"{client} of {key}", asking(log, key, 20, clock), caller=CLASS)
    for _ in range(60):
        scheduler.step()
    last = {key: max(turn for turn, name in enumerate(log) if name == key) for key in askers}
    assert last["frequent"] < last["usual"] < last["rare"]


@pytest.mark.parametrize("clients", [MANY, 4 * MANY])
def test_in_a_crowd_long_work_that_many_wait_for_delays_others_by_some_seconds_alone(clock, monkeypatch, clients):
    def waited(shared):
        monkeypatch.setattr(turns, "SHARED", shared)
        scheduler, log = Stepped(clock), []
        for client in range(clients):
            scheduler.start(str(client), asking(log, "long", 100_000, clock), caller=CLASS)
        scheduler.start("alone", counting(log, "alone", 20, clock, STEP), caller=CLASS)
        while log.count("alone") < 20:
            assert scheduler.step()
        for job in list(scheduler.jobs):
            job.stop()
        scheduler.run()
        return log.count("long") * STEP

    assert waited(SHARED) <= waited(0.0) + SHARED_SECONDS + KEPT


def test_in_a_crowd_a_first_result_comes_before_the_rest_of_others_which_does_not_starve(scheduler, clock):
    log = []
    for client in range(MANY):
        scheduler.start(str(client), showing(log, "seen", 200, clock), caller=CLASS)
    while any(not job.has_result for job in scheduler.jobs):
        scheduler.step()
    log.clear()
    for client in range(3):
        scheduler.start(f"new {client}", counting(log, "unseen", 50, clock, STEP), caller=CLASS)
    for _ in range(100):
        scheduler.step()
    assert log.count("seen") == pytest.approx(100 / (1 + SEEN_SHARE), abs=5)


def test_in_a_crowd_one_short_turn_does_not_lengthen_the_share_of_what_is_seen():
    turns, seen = Turns(), [Account(str(client), "class", seconds_to_result=0.0) for client in range(MANY)]
    accounts = [*seen, Account("new", "class")]
    for account in accounts:
        turns.admit(account, [])
        turns.count(account, STEP)
    for seconds in (60.0, 1e-3):  # has used so much that it gets no turn soon, and the last one was short
        turns.count(seen[0], seconds)
    used_by_seen = 0
    for _ in range(100):
        chosen = turns.choose(accounts)
        turns.count(chosen, STEP)
        used_by_seen += chosen.has_result
    assert used_by_seen == pytest.approx(100 / (1 + SEEN_SHARE), abs=5)


@pytest.mark.parametrize("turns_to_result", [1, 5, 30])
def test_in_a_crowd_the_share_of_what_is_seen_holds_while_others_come_and_get_results(turns_to_result):
    turns, seen = Turns(), [Account(f"seen {client}", "class", seconds_to_result=0.0) for client in range(3)]
    unseen = {Account(f"new {client}", "class"): 0 for client in range(MANY)}
    for account in [*seen, *unseen]:
        turns.admit(account, [])
        turns.count(account, STEP)
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


def test_what_a_crowd_sees_has_its_share_beside_another_address():
    turns, alone = Turns(), Account("alone", "elsewhere", seconds_to_result=0.0)
    seen = [Account(f"seen {client}", "class", seconds_to_result=0.0) for client in range(3)]
    accounts = [alone, *seen, *(Account(f"new {client}", "class") for client in range(MANY))]
    for account in accounts:
        turns.admit(account, [])
        turns.count(account, STEP)
    chosen = []
    for _ in range(400):
        chosen.append(turns.choose(accounts))
        turns.count(chosen[-1], STEP)
    assert chosen.count(alone) == pytest.approx(200, abs=4)
    assert sum(job in seen for job in chosen) == pytest.approx(200 / (1 + SEEN_SHARE), abs=8)


def test_in_a_crowd_the_first_token_of_an_answer_comes_first(scheduler, clock):
    log = []
    for client in range(MANY):
        scheduler.start(str(client), counting(log, "slice", 50, clock, STEP), caller=CLASS)
    for _ in range(10):
        scheduler.step()
    log.clear()
    scheduler.start("reader", showing(log, "answer", 50, clock), Urgency.FIRST, CLASS)
    for _ in range(30):
        scheduler.step()
    assert log[0] == "answer"
    assert log.count("answer") <= 15  # the rest has the share of what clients see already


def test_turns_in_between_take_the_turn_from_nobody(scheduler, clock):
    log = []
    for client in range(MANY):
        scheduler.start(f"seen {client}", showing([], "seen", 200, clock), caller=CLASS)
    scheduler.start("background", counting([], "", 200, clock, STEP), Urgency.BACKGROUND, CLASS)
    while any(not job.has_result for job in scheduler.jobs[:MANY]):
        scheduler.step()
    for client in range(MANY):
        scheduler.start(f"{client}", counting(log, client, 20, clock, STEP), caller=CLASS)
    while len(log) < 4 * 20:
        scheduler.step()
    changes = sum(first != second for first, second in zip(log[MANY:], log[MANY + 1 :], strict=False))
    assert changes <= 4


def test_in_a_crowd_what_is_cached_does_not_wait_in_line(scheduler, clock):
    log = []
    for client in range(MANY):
        scheduler.start(str(client), counting(log, "slice", 50, clock, STEP), caller=CLASS)
    for _ in range(2 * MANY):
        scheduler.step()
    log.clear()
    cached = scheduler.start("late", counting(log, "cached", 3, clock, BRIEF / 4), caller=CLASS)
    for _ in range(4):
        scheduler.step()
    assert cached.ended
    assert log == ["cached"] * 3


def test_a_crowd_of_one_address_takes_no_turns_of_another(scheduler, clock):
    log = []
    for client in range(MANY):
        scheduler.start(str(client), counting(log, "crowd", 100, clock, STEP), Urgency.FIRST, CLASS)
    scheduler.start("alone", showing(log, "alone", 100, clock), caller=Caller("127.0.0.3"))
    for _ in range(100):
        scheduler.step()
    assert log.count("alone") == pytest.approx(50, abs=2)


def test_a_few_take_short_turns(scheduler, clock):
    log = []
    for client in range(FEW):
        scheduler.start(str(client), showing(log, client, 20, clock), caller=CLASS)
    scheduler.run()
    assert log[: 2 * FEW] == [*range(FEW)] * 2


def test_a_shared_result_is_seen_by_all_who_wait_for_it(scheduler, clock):
    def take(job):
        return job.share("slice", showing([], "made", 3, clock))

    jobs = [scheduler.start(name, take) for name in "ab"]
    while not jobs[0].has_result:
        scheduler.step()
    assert jobs[1].has_result


def test_a_class_of_sixty_at_one_address_is_not_refused_and_another_address_has_places(monkeypatch):
    """Each student measures a setting, has an answer written, and has its costs measured in the background."""
    monkeypatch.setenv("INTRASLICE_HOSTED", "1")
    jobs, address, running = Jobs(), ["127.0.0.2"], []
    jobs.caller, done = lambda: Caller(address[0]), threading.Event()

    def work(job):
        job.emit(Status("working"))
        with job.waiting():
            done.wait()

    def begin(client, kind):
        running.append(jobs.run(client, kind, work))
        return next(running[-1]).kind

    kinds = ("measure", "answer", "costs")
    assert {begin(f"student {number}", kind) for number in range(60) for kind in kinds} == {"busy"}
    address[0] = "127.0.0.3"
    assert begin("somebody", "measure") == "busy"
    done.set()
    assert not any(event.kind == "error" for events in running for event in events)
