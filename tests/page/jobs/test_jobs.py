"""What clients have running: what ends when they move on and what goes on, and what is said last."""

import random
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest
from stepping import OnlyWhileAwaited, Panic, counting, events

from components import limits
from components.jobs.job import Caller, Job
from components.jobs.jobs import Jobs, job_progress
from components.jobs.status import Status
from components.jobs.waiting import Waiting
from components.state.settings import Settings
from components.ui.handlers import status_line
from intraslice.core.errors import UserError
from intraslice.core.progress import Progress


def endless(job: Job) -> None:
    while True:
        job.emit(Status("working"))


@pytest.fixture
def jobs() -> Jobs:
    jobs = Jobs()
    jobs.scheduler = OnlyWhileAwaited()
    return jobs


def begun(jobs: Jobs, client: str, kind: str, **cancel_when_changed: object) -> Iterator[Status]:
    """The events of a job that has emitted its first."""
    events = jobs.run(client, kind, endless, **cancel_when_changed)
    assert next(events).text == "working"
    return events


def test_a_job_ends_with_what_it_follows_or_when_replaced_and_spares_all_others(jobs) -> None:
    live = begun(jobs, "a", "measure", request=Settings(sparsity=30))
    shift = begun(jobs, "a", "shift", request=Settings(sparsity=30), tab="activations")
    asked, yours = begun(jobs, "a", "sweep"), begun(jobs, "you", "answer")
    jobs.set_view("a", request=Settings(sparsity=30), tab="activations")  # another layer was clicked
    assert next(live).text == next(shift).text == "working"
    jobs.set_view("a", tab="compare")
    assert list(shift) == []
    assert next(live).text == "working"
    jobs.set_view("a", request=Settings(sparsity=31))
    assert list(live) == []
    again = begun(jobs, "a", "sweep")
    assert list(asked) == []
    jobs.set_view("you", request=Settings(), tab="ratios")
    assert next(again).text == next(yours).text == "working"
    jobs.halt("you")
    assert [event.text for event in yours] == ["Cancelled."]
    assert next(again).text == "working"
    answer = begun(jobs, "a", "answer")
    jobs.halt("a", "sweep")
    assert [event.text for event in again] == ["Cancelled."]
    assert next(answer).text == "working"


def test_who_sees_that_a_job_was_replaced_finds_the_one_after_it(monkeypatch) -> None:
    """Otherwise two releases at one setting replace each other without end: each believes that nobody measures it."""
    jobs, seen, has_ended = Jobs(), [], threading.Event()
    first = begun(jobs, "a", "measure", request=30)

    def follow() -> None:
        list(first)
        seen.append(jobs.is_running("a", "measure", request=30))
        has_ended.set()

    def start_late(*arguments: object) -> Job:
        has_ended.wait(0.3)
        return start(*arguments)

    start = jobs.scheduler.start
    monkeypatch.setattr(jobs.scheduler, "start", start_late)
    follower = threading.Thread(target=follow)
    follower.start()
    second = begun(jobs, "a", "measure", request=30)
    follower.join()
    assert seen == [True]
    second.close()


def test_more_than_there_is_room_for_is_refused_in_words_and_not_begun(jobs, monkeypatch) -> None:
    monkeypatch.setenv("INTRASLICE_MAX_CLIENT_JOBS", "2")
    monkeypatch.setenv("INTRASLICE_MAX_JOBS", "3")
    own = [begun(jobs, "a", kind) for kind in ("measure", "answer")]
    (refused,) = jobs.run("a", "sweep", endless)
    assert refused == Status("You already have 2 jobs running. Wait for one to finish, or stop one.", "error")
    own.append(begun(jobs, "a", "answer"))  # in the place of the former one
    others = begun(jobs, "b", "measure")
    (refused,) = jobs.run("c", "measure", endless)
    assert refused.text == "Too many jobs (3) from other sessions are waiting. Try again in a minute."
    others.close()
    own.append(begun(jobs, "c", "measure"))


def test_an_address_with_jobs_leaves_places_for_addresses_without_and_a_hosted_page_has_places_for_a_class_of_sixty(
    jobs, monkeypatch
) -> None:
    """Each student measures a setting, has an answer written, and has its costs measured in the background."""

    def begin(client: str, address: str, kind: str = "evaluate") -> str:
        jobs.caller = lambda: Caller(address)
        events.append(jobs.run(client, kind, endless))
        return next(events[-1]).kind

    events: list[Iterator[Status]] = []
    monkeypatch.setenv("INTRASLICE_MAX_JOBS", "5")
    assert [begin(f"session {n}", "127.0.0.2") for n in range(6)] == ["busy"] * 4 + ["error"] * 2
    assert begin("another session", "127.0.0.3") == "busy"
    assert begin("a third one", "127.0.0.4") == "error"
    assert begin("hidden by a proxy", "") == "error"
    monkeypatch.delenv("INTRASLICE_MAX_JOBS")
    monkeypatch.setenv("INTRASLICE_HOSTED", "1")
    kinds = ("measure", "answer", "costs")
    assert {begin(f"student {n}", "127.0.0.2", kind) for n in range(60) for kind in kinds} == {"busy"}
    assert begin("another", "127.0.0.3", "measure") == "busy"


def test_a_job_has_so_many_seconds(jobs, monkeypatch) -> None:
    monkeypatch.setenv("INTRASLICE_MAX_JOB_SECONDS", "1")
    now = iter(range(1000))
    jobs.scheduler = OnlyWhileAwaited(clock=lambda: next(now) / 4)
    *_, last = jobs.run("a", "sweep", endless)
    assert last.kind == "error"
    assert "reached its limit" in last.text


def test_the_log_has_a_line_a_job_and_nothing_that_a_client_wrote(jobs, caplog) -> None:
    def failing(job: Job) -> None:
        job.emit(Status("a secret prompt"))
        raise UserError("a secret file")

    with caplog.at_level("INFO", "components"):
        list(jobs.run("a", "answer", failing))
        begun(jobs, "a", "sweep").close()
    first, second = (record.getMessage() for record in caplog.records)
    assert first.startswith("answer: UserError after")
    assert second.startswith("sweep: stopped after")
    assert "MB" in first
    assert "secret" not in caplog.text


def test_prefetched_work_begins_after_a_rest_while_nothing_runs_and_ends_with_the_next_move(
    scheduler, clock, monkeypatch
) -> None:
    jobs, taken = Jobs(scheduler), []
    monkeypatch.setattr(Job, "sleep", lambda job, seconds: job.checkpoint())  # a rest takes one turn
    jobs.prefetch("ada", counting(taken, "first", 99), request=30)
    scheduler.step()
    jobs.set_view("ada", request=31)  # moved on before the rest was over
    scheduler.step()
    assert not scheduler.jobs
    jobs.prefetch("ada", counting(taken, "second", 99), request=31)
    for _ in range(2):
        scheduler.step()
    jobs.set_view("ada", request=31)  # let go where it is
    scheduler.step()
    assert taken == ["second"] * 2
    assert jobs._refusal("ada", "") == ""
    jobs.set_view("ada", request=32)
    scheduler.step()
    assert not scheduler.jobs
    scheduler.start("bob", counting(taken, "other", 99, clock, 1.0))
    jobs.prefetch("ada", counting(taken, "third", 99), request=32)
    for _ in range(20):
        scheduler.step()
    assert [job.client for job in scheduler.jobs] == ["bob"]
    assert "third" not in taken


def test_the_time_left_of_work_that_goes_on_is_of_what_is_done_now(scheduler, clock, monkeypatch) -> None:
    monkeypatch.setattr(time, "monotonic", clock)

    def work(job: Job) -> None:
        progress = job_progress(job, "window", when_done=True)
        for done in (5, 6, 7):
            progress(Progress("evaluate", done, 8))
            clock.now += 3.0

    job = scheduler.start("a", work)
    scheduler.run()
    assert [event.seconds_left for event in events(job)] == [None, 6.0, 3.0]


def test_progress_is_emitted_as_often_as_it_can_be_read_and_every_call_is_a_checkpoint(
    scheduler, clock, monkeypatch
) -> None:
    turns, pause = [], 0.4 * limits.STATUS_SECONDS
    monkeypatch.setattr(time, "monotonic", clock)

    def work(job: Job) -> None:
        progress = job_progress(job, "Slicing, layer")
        for done in range(8):
            progress(Progress("slice", done, 8))
            turns.append(done)
            clock.now += pause

    job = scheduler.start("a", work)
    for steps in range(1, 8):
        scheduler.step()
        assert len(turns) == steps - 1
    scheduler.run()
    first, *later = events(job)
    assert first == Status("Slicing, layer", "busy", 0, 8)
    assert [(status.done, status.seconds_left) for status in later] == [
        (3, pytest.approx(5 * pause)),
        (6, pytest.approx(2 * pause)),
    ]


READY = Status("Ready", "ready")
BUSY = Status("measure", done=1, total=2)
INTERNAL = "An internal error occurred ({}). The server's log has the details."


class Page:
    """What a client has running, and how the jobs of a kind end."""

    def __init__(self) -> None:
        self.jobs, self.is_connected, self.ends = Jobs(), True, {}
        self.jobs.scheduler = OnlyWhileAwaited()
        self.jobs.caller = lambda: Caller(is_connected=lambda: self.is_connected)

    @property
    def line(self) -> Status:
        return self.jobs.status("ada", lambda: READY)

    def run(self, kind: str, has_line: bool = True, **follows: object) -> Iterator[Status]:
        def work(job: Job) -> None:
            while self.ends.get(kind) != "done":
                job.emit(replace(BUSY, text=kind))
                if isinstance(problem := self.ends.get(kind), BaseException):
                    raise problem

        return self.jobs.run("ada", kind, work, ready=(lambda: READY) if has_line else None, **follows)

    def begin(self, kind: str, **follows: object) -> Iterator[Status]:
        """The events of a job that has emitted its first, which the line shows."""
        events = self.run(kind, **follows)
        assert next(events).line() == self.line == replace(BUSY, text=kind)
        return events

    def end(self, how: Any, kind: str = "measure") -> None:
        if how == "moved":
            self.jobs.set_view("ada", request=31)
        elif how == "cancelled":
            self.jobs.halt("ada", kind)
        elif how == "replaced":
            list(self.jobs.run("ada", kind, lambda job: None, ready=lambda: READY))
        elif how == "gone":
            self.is_connected = False
        else:
            self.ends[kind] = how


@pytest.mark.parametrize(
    ("how", "text"),
    [
        *((how, "Ready") for how in ("done", "moved", "replaced")),
        *((how, "Cancelled.") for how in ("cancelled", "gone")),
        (UserError("no such model"), "No such model."),
        (KeyError("a defect"), INTERNAL.format("KeyError")),
        (Panic("called `Option::unwrap()`"), INTERNAL.format("RuntimeError")),
        (SystemExit(1), INTERNAL.format("RuntimeError")),
    ],
    ids=str,
)
def test_whatever_ends_a_job_nothing_of_it_is_in_the_line(how, text, caplog) -> None:
    page = Page()
    events = page.begin("measure", request=30)
    page.end(how)
    assert how != "moved" or page.line == READY  # even before the job ends
    last = list(events)[-1]
    is_error = isinstance(how, BaseException)
    assert (str(last.text), last.kind) == (text, "error" if is_error else "ready")
    assert last.stopped == (not is_error and how != "done")
    assert replace(last, stopped=False) == replace(last.line(), stopped=False) == page.line
    assert ("a defect" in caplog.text or "unwrap" in caplog.text) == isinstance(how, (KeyError, Panic))
    assert page.jobs._running == []
    page.is_connected, page.ends = True, {}
    assert page.begin("measure")  # and the line is of that


def test_the_line_is_of_the_newest_job_that_goes_on_and_waits_for_no_other() -> None:
    page = Page()
    sweep, measure = page.begin("sweep"), page.begin("measure", request=30)
    assert next(sweep).line().text == "measure"
    page.jobs._running[-1].status = Waiting("Waiting; jobs ahead: 1")
    assert page.line.text == "sweep"
    page.end("moved")
    (last,) = measure
    assert (last.kind, last.line().text) == ("ready", "sweep")
    page.jobs.halt("ada")
    assert [event.line() for event in sweep] == [Status("Cancelled.", "ready")]


def test_jobs_that_are_shown_elsewhere_are_not_in_the_line() -> None:
    page = Page()
    answer = page.begin("answer")
    page.ends["check"] = UserError("no numbers")
    assert [event.line for event in page.run("check", has_line=False)] == [None, None]
    assert page.line.text == "answer"
    assert list(page.jobs.run("ada", "search", lambda job: job.emit("a view"))) == ["a view"]
    page.end("done", "answer")
    assert list(answer)[-1].line() == READY


def test_an_error_stays_until_the_client_begins_something_else() -> None:
    page = Page()
    sweep, measure = page.begin("sweep"), page.begin("measure", request=30)
    page.ends["gguf"] = OSError("the disk is full")
    *_, error = page.run("gguf")
    page.end("moved")
    assert {event.line() for event in (error, next(sweep), *measure)} == {Status("The disk is full.", "error")}
    assert page.begin("answer")


@pytest.mark.parametrize("seed", range(40))
def test_the_line_ends_without_a_bar_in_whatever_order_answers_arrive(seed) -> None:
    """The browser shows the one with the greatest number; gradio sends a handler's last answer twice."""
    chance, page = random.Random(seed), Page()
    running: list[Iterator[Status]] = []
    arriving: list[str] = []
    shown = "<!--0-->"

    def step() -> None:
        nonlocal shown
        if running and (chance.random() < 0.5 or not arriving):
            events = chance.choice(running)
            if (event := next(events, None)) is None:
                running.remove(events)
            else:
                arriving.extend([status_line(event)] * 2)
        elif arriving:
            shown = max(
                shown, arriving.pop(chance.randrange(len(arriving))), key=lambda text: int(text[4:].split("--")[0])
            )

    for _ in range(30):
        act = chance.choice(["begin", "begin", "moved", "cancelled", *["step"] * 12])
        if act == "begin":
            kind, steps = chance.choice(["measure", "sweep", "answer"]), chance.randrange(1, 4)
            follows = {"request": 30} if kind == "measure" else {}

            def work(job: Job, kind: str = kind, steps: int = steps) -> None:
                for done in range(steps):
                    job.emit(Status(kind, done=done, total=steps))

            running.append(page.jobs.run("ada", kind, work, ready=lambda: READY, **follows))
        elif act == "step":
            step()
        else:
            page.end(act)
    while running or arriving:
        step()
    assert "isx-busy" not in shown
