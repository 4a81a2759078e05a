"""The last status of a job: whatever ends it, nothing of what it said remains on its client's page."""

import random
from collections.abc import Iterator
from typing import Any

import gradio as gr
import pytest
from stepping import OnlyWhileAwaited

from components.jobs.job import Caller, Job
from components.jobs.jobs import Jobs
from components.jobs.status import Status
from components.ui.handlers import status_line
from intraslice.core.errors import UserError

READY = Status("Ready", "ready")


class Panic(BaseException):
    """As tokenizers raise it."""


class Page:
    """What a client has running, and how the jobs of a kind end."""

    def __init__(self) -> None:
        self.jobs, self.is_connected, self.ends = Jobs(), True, {}
        self.jobs.scheduler = OnlyWhileAwaited()
        self.jobs.caller = lambda: Caller(is_connected=lambda: self.is_connected)

    def run(self, kind: str, **follows: object) -> Iterator[Status]:
        def work(job: Job) -> None:
            done = 0
            while self.ends.get(kind) != "done":
                job.emit(Status(kind, done=done))
                done += 1
                if isinstance(problem := self.ends.get(kind), BaseException):
                    raise problem

        return self.jobs.run("ada", kind, work, ready=lambda: READY, **follows)

    def begin(self, kind: str, **follows: object) -> Iterator[Status]:
        """The events of a job that has emitted its first."""
        events = self.run(kind, **follows)
        assert next(events) == Status(kind)
        return events

    def end(self, how: Any, kind: str = "measure") -> None:
        if how == "moved":
            self.jobs.look("ada", request=31)
        elif how == "cancelled":
            self.jobs.halt("ada", kind)
        elif how == "replaced":
            next(self.jobs.run("ada", kind, lambda job: job.emit(Status("newer"))))
        elif how == "gone":
            self.is_connected = False
        else:
            self.ends[kind] = how


INTERNAL = "An internal error occurred ({}). The server's log has the details."


@pytest.mark.parametrize(
    ("how", "text"),
    [
        ("done", "Ready"),
        ("moved", "Ready"),
        ("replaced", "Ready"),
        ("cancelled", "Cancelled."),
        ("gone", "Cancelled."),
        (UserError("no such model"), "No such model."),
        (KeyError("a defect"), INTERNAL.format("KeyError")),
        (Panic("called `Option::unwrap()`"), INTERNAL.format("RuntimeError")),
        (SystemExit(1), INTERNAL.format("RuntimeError")),
    ],
    ids=str,
)
def test_whatever_ends_a_job_its_last_status_replaces_what_it_said(how, text, caplog) -> None:
    page = Page()
    events = page.begin("measure", request=30)
    page.end(how)
    last = list(events)[-1]
    is_error = isinstance(how, BaseException)
    assert (str(last.text), last.kind, last.taken) == (text, "error" if is_error else "ready", False)
    assert last.stopped == (not is_error and how != "done")
    assert ("a defect" in caplog.text or "unwrap" in caplog.text) == isinstance(how, (KeyError, Panic))
    assert page.jobs._running == []


def test_while_another_job_of_the_client_goes_on_its_status_comes_back() -> None:
    page = Page()
    sweep = page.begin("sweep")
    measure = page.begin("measure", request=30)
    before = next(sweep).done
    page.end("moved")
    (last,) = measure
    assert status_line(last) == gr.skip()
    assert next(sweep).done == before  # again
    assert next(sweep).done == before + 1
    page.jobs.halt("ada")
    assert list(sweep) == [Status("Cancelled.", "ready", stopped=True)]


def test_jobs_whose_statuses_are_shown_elsewhere_leave_the_line_to_the_others() -> None:
    page = Page()
    answer = page.begin("answer")
    *_, last = page.jobs.run("ada", "evaluate", lambda job: 1 / 0)
    assert last.kind == "error"
    assert list(page.jobs.run("ada", "check", lambda job: job.emit("a view"))) == ["a view"]
    page.end("done", "answer")
    assert list(answer)[-1] == READY


def test_an_error_stays_when_another_job_ends_that_has_said_nothing_since() -> None:
    page = Page()
    silent, talking = page.begin("measure", request=30), page.begin("shift", request=30)
    page.ends["gguf"] = OSError("the disk is full")
    *_, error = page.run("gguf")
    assert status_line(error) != gr.skip()
    for _ in range(2):
        assert next(talking).kind == "busy"
    page.end("moved")
    assert [last.taken for last in silent] == [True]
    assert [last.taken for last in talking] == [False]


@pytest.mark.parametrize("seed", range(100))
def test_the_line_ends_without_a_bar_in_whatever_order_statuses_arrive(seed) -> None:
    """Gradio asks a handler for its next answer once the last one is sent, and at its end sends that again."""
    chance, page, line = random.Random(seed), Page(), ""
    running: list[list[Any]] = []  # events, the answer that is on its way, and the last one that arrived

    def step(calls: list[Any]) -> None:
        nonlocal line
        events, answer, last = calls
        if answer is None and (event := next(events, None)) is not None:
            calls[1] = status_line(event)
            return
        if answer is None:
            running.remove(calls)
        calls[1:] = None, last if answer is None else answer
        line = line if calls[2] == gr.skip() else calls[2]

    def begin() -> None:
        kind, steps = chance.choice(["measure", "sweep", "answer"]), chance.randrange(1, 4)

        def work(job: Job) -> None:
            for done in range(steps):
                job.emit(Status(kind, done=done, total=steps))

        follows = {"request": 30} if kind == "measure" else {}
        running.append([page.jobs.run("ada", kind, work, ready=lambda: READY, **follows), None, gr.skip()])

    for _ in range(20):
        act = chance.choice(["begin", "begin", "moved", "cancelled", *["step"] * 12])
        if act == "begin":
            begin()
        elif act != "step":
            page.end(act)
        elif running:
            step(chance.choice(running))
    while running:
        step(chance.choice(running))
    assert "isx-busy" not in line
