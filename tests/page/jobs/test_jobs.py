"""What clients have running: what ends when they move on, and what goes on."""

import threading
import time
from collections.abc import Callable, Iterator

import pytest
from stepping import OnlyWhileAwaited, Stepped

from components.jobs.job import Caller, Job
from components.jobs.jobs import Jobs, job_progress
from components.jobs.status import EVERY, Status
from components.state.settings import Settings
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


def begun(jobs: Jobs, client: str, kind: str, **follows: object) -> Iterator[Status]:
    """The events of a job that has emitted its first."""
    events = jobs.run(client, kind, endless, **follows)
    assert next(events).text == "working"
    return events


def test_dragging_ends_what_follows_the_slider_and_spares_what_was_asked_for(jobs) -> None:
    live = begun(jobs, "a", "measure", request=Settings(sparsity=30))
    asked = begun(jobs, "a", "sweep")
    jobs.look("a", request=Settings(sparsity=30))  # another layer was clicked
    assert next(live).text == "working"
    jobs.look("a", request=Settings(sparsity=31))
    assert list(live) == []
    assert next(asked).text == "working"


def test_leaving_a_tab_ends_what_it_alone_shows(jobs) -> None:
    shift = begun(jobs, "a", "shift", request=Settings(), tab="activations")
    slicing = begun(jobs, "a", "measure", request=Settings())
    jobs.look("a", tab="activations")
    assert next(shift).text == "working"
    jobs.look("a", tab="compare")
    assert list(shift) == []
    assert next(slicing).text == "working"


def test_a_new_job_ends_the_former_one_of_its_kind(jobs) -> None:
    first, other = begun(jobs, "a", "answer"), begun(jobs, "a", "sweep")
    second = begun(jobs, "a", "answer")
    assert list(first) == []
    assert next(other).text == next(second).text == "working"
    jobs.halt("a", "sweep")
    assert [event.text for event in other] == ["Cancelled."]


def test_nobody_ends_anothers_job(jobs) -> None:
    mine, yours = begun(jobs, "me", "answer"), begun(jobs, "you", "answer")
    jobs.look("you", request=Settings(), tab="ratios")
    jobs.halt("you")
    assert next(mine).text == "working"
    assert [event.text for event in yours] == ["Cancelled."]


def test_more_than_there_is_room_for_is_refused_in_words_and_not_begun(jobs, monkeypatch) -> None:
    monkeypatch.setenv("INTRASLICE_MAX_VISITOR_JOBS", "2")
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


def test_an_address_with_jobs_leaves_places_for_addresses_without(jobs, monkeypatch) -> None:
    monkeypatch.setenv("INTRASLICE_MAX_JOBS", "5")

    def begin(client: str, address: str) -> Status:
        jobs.caller = lambda: Caller(address)
        events.append(jobs.run(client, "evaluate", endless))
        return next(events[-1])

    events: list[Iterator[Status]] = []
    assert [begin(f"session {n}", "127.0.0.2").kind for n in range(6)] == ["busy"] * 4 + ["error"] * 2
    assert begin("another session", "127.0.0.3").kind == "busy"
    assert begin("a third one", "127.0.0.4").kind == "error"
    assert begin("hidden by a proxy", "").kind == "error"


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


def test_prefetched_work_begins_after_a_rest_while_nothing_runs_and_ends_with_the_next_move(monkeypatch) -> None:
    rested, jobs, taken, now = threading.Event(), Jobs(), [], [0.0]
    jobs.scheduler = scheduler = Stepped(clock=lambda: now[0])

    def sleep(job: Job, seconds: float) -> None:
        with job.waiting():
            while not job.is_cancelled:
                if rested.wait(0.01):
                    return

    def work(name: str) -> Callable[[Job], None]:
        def working(job: Job) -> None:
            while True:
                taken.append(name)
                job.checkpoint()

        return working

    def rest() -> None:
        """Let the job that rests go on, and take a turn."""
        rested.set()
        scheduler.until(lambda: not any(job.is_away for job in scheduler.jobs))
        scheduler.step()
        rested.clear()

    monkeypatch.setattr(Job, "sleep", sleep)
    jobs.prefetch("ada", work("first"), request=30)
    scheduler.step()
    jobs.look("ada", request=31)  # moved on before the rest was over
    scheduler.until(lambda: not any(job.is_away for job in scheduler.jobs))
    jobs.prefetch("ada", work("second"), request=31)
    scheduler.step()  # ends the first
    scheduler.step()
    rest()
    jobs.look("ada", request=31)  # let go where it is
    scheduler.step()
    assert taken == ["second"] * 2
    assert jobs._refusal("ada", "") == ""
    jobs.look("ada", request=32)
    scheduler.step()
    assert not scheduler.jobs

    def slow(job: Job) -> None:
        while True:
            now[0] += 1.0
            job.checkpoint()

    scheduler.start("bob", slow)
    jobs.prefetch("ada", work("third"), request=32)
    for _ in range(20):
        rest()
    assert [job.client for job in scheduler.jobs] == ["bob"]
    assert "third" not in taken


def test_the_time_left_of_work_that_goes_on_is_of_what_is_done_now(monkeypatch) -> None:
    now = [0.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])

    def work(job: Job) -> None:
        progress = job_progress(job, "window", when_done=True)
        for done in (5, 6, 7):
            progress(Progress("evaluate", done, 8))
            now[0] += 3.0

    job = (scheduler := Stepped()).start("a", work)
    scheduler.run()
    assert [event.seconds_left for events in job.events() for event in events] == [None, 6.0, 3.0]


def test_progress_is_emitted_as_often_as_it_can_be_read_and_every_call_is_a_checkpoint(monkeypatch) -> None:
    now, turns = [0.0], []
    monkeypatch.setattr(time, "monotonic", lambda: now[0])

    def work(job: Job) -> None:
        progress = job_progress(job, "Slicing, layer")
        for done in range(8):
            progress(Progress("slice", done, 8))
            turns.append(done)
            now[0] += 0.4 * EVERY

    scheduler = Stepped()
    job = scheduler.start("a", work)
    for steps in range(1, 8):
        scheduler.step()
        assert len(turns) == steps - 1
    scheduler.run()
    statuses = [event for events in job.events() for event in events]
    assert [status.done for status in statuses] == [0, 3, 6]
    assert [status.seconds_left for status in statuses] == pytest.approx([None, 0.4 * EVERY * 5, 0.4 * EVERY * 2])
    assert statuses[0] == Status("Slicing, layer", "busy", 0, 8)
