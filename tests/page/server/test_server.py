"""The server under the page: its queue among untrusted clients, and its health."""

import contextlib
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import pytest
from gradio_pages import Client, page_of
from stepping import until

from components import limits
from components.jobs.job import Job, Scheduler
from components.server.app import App
from components.state.calibrations import READERS


@pytest.fixture
def serve(launch, monkeypatch) -> Callable[..., tuple[App, Client]]:
    """A page of one endpoint, which waits the given seconds, or until `released`; two calls run at a time."""
    monkeypatch.setenv("INTRASLICE_MAX_CALLS", "10")
    monkeypatch.setenv("INTRASLICE_MAX_CLIENT_CALLS", "3")
    monkeypatch.setattr(limits, "TIDYING_SECONDS", 0.05)

    def open_page(scheduler: Scheduler | None = None, released: threading.Event | None = None) -> tuple[App, Client]:
        def work(seconds: float) -> float:
            (released or threading.Event()).wait(seconds)
            return seconds

        page = page_of(work, lambda: App(scheduler or Scheduler()), concurrency_limit=2)
        return page, launch(page)

    return open_page


def test_calls_that_no_client_reads_keep_no_other_waiting(serve) -> None:
    page, caller = serve()
    unread = [caller.call("work", 300.0) for _ in range(60)]
    assert {answer.status_code for answer in unread} == {200}
    assert caller.ask("work", 0.0)[0] == "complete"  # which would take too long for the client after two of the others
    assert len(page.calls.event_ids_to_events) <= 10
    assert len(page.calls.pending_messages_per_session) <= 20
    assert len(page.calls.pending_event_ids_session) <= 20
    assert not any(page.calls.active_jobs)


def test_messages_of_those_who_wait_are_kept(serve) -> None:
    """Whatever others leave behind meanwhile."""
    page, caller = serve(released=(released := threading.Event()))
    with ThreadPoolExecutor(4) as waiting:
        answers = [waiting.submit(caller.ask, "work", 60.0) for _ in range(4)]
        until(lambda: sum(box.readers for box in page.calls.pending_messages_per_session.values()) == 4)
        for _ in range(60):
            caller.join("work", 0.0)
        released.set()
    assert all(answer.result()[0] == "complete" for answer in answers)


def test_too_many_calls_are_refused_in_words(serve) -> None:
    _, caller = serve()
    *_, refused = (caller.call("work", 0.0, session_hash="greedy") for _ in range(4))
    assert refused.status_code == 503
    assert refused.json()["detail"].startswith("This page already has 3 requests waiting.")
    with contextlib.ExitStack() as readers:
        for _ in range(8):  # the last three instead of the greedy one's, which nobody reads
            event = caller.join("work", 30.0)
            readers.enter_context(caller.http.stream("GET", f"{caller.api}/call/work/{event}"))
        refused = caller.call("work", 0.0)
        others = [
            Client(caller.address, f"127.0.0.{number}").call("work", 30.0) for number in (2, 3)
        ]  # for whom a part is kept
    assert refused.status_code == 503
    assert refused.json()["detail"].startswith("The server already has 8 requests waiting.")
    assert [answer.status_code for answer in others] == [200, 200]


def test_a_reader_who_stops_reading_is_given_up(serve, monkeypatch) -> None:
    page, caller = serve()
    event = page.calls.event_ids_to_events[caller.join("work", 0.0)]
    monkeypatch.setenv("INTRASLICE_MAX_UNREAD_SECONDS", "1")
    until(lambda: not page.calls.event_ids_to_events)
    assert event.session_hash not in page.calls.pending_messages_per_session
    monkeypatch.delenv("INTRASLICE_MAX_UNREAD_SECONDS")
    event = page.calls.event_ids_to_events[caller.join("work", 30.0)]
    box = page.calls.pending_messages_per_session[event.session_hash]
    box.readers = 1  # the call begins as if a client read
    until(lambda: any(page.calls.active_jobs))
    box.readers = 0
    monkeypatch.setenv("INTRASLICE_MAX_UNREAD_SECONDS", "1")
    until(lambda: not event.alive)


def test_health_says_whether_the_page_works(serve, monkeypatch) -> None:
    scheduler, ended = Scheduler(), threading.Event()
    page, caller = serve(scheduler)
    address = caller.api.replace("gradio_api", "healthz")
    until(lambda: caller.http.get(address).json()["worker"] == "free")
    answer = caller.http.get(address)
    assert answer.status_code == 200
    free = {"ok": True, "queue": "running", "calls": 0, "worker": "free", "readers": "free"}
    assert answer.json() | free == answer.json()

    def read(job: Job) -> None:
        with READERS.held(job), job.waiting():
            ended.wait()

    def load(job: Job) -> None:
        with job.waiting():  # for a model from the Hub, which may take its time
            ended.wait()

    for work, where, what in ((lambda job: ended.wait(), "worker", "in one step for"), (read, "readers", "reading")):
        ended.clear()
        monkeypatch.delenv("INTRASLICE_MAX_STUCK_SECONDS", raising=False)
        for _ in range(2):
            scheduler.start("client", load)
        job = scheduler.start("client", work)
        assert caller.http.get(address).status_code == 200
        monkeypatch.setenv("INTRASLICE_MAX_STUCK_SECONDS", "1")
        until(lambda: caller.http.get(address).status_code == 503)
        job.stop()  # its client leaves, and it goes on
        answer = caller.http.get(address)
        assert answer.status_code == 503
        stuck = {name: answer.json()[name] for name in ("worker", "readers") if answer.json()[name] != "free"}
        assert stuck.keys() == {where}
        assert stuck[where].startswith(what)
        ended.set()
        until(lambda: caller.http.get(address).status_code == 200)
    page.calls.close()
    assert (caller.http.get(address).status_code, caller.http.get(address).json()["queue"]) == (503, "stopped")
