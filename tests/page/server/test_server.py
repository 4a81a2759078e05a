"""The server under the page: its queue among untrusted clients, its health, and who may call it and how soon.

Another site must not use it through its user's browser.
"""

import asyncio
import contextlib
import socket
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from unittest.mock import AsyncMock

import gradio_client
import pytest
from gradio_pages import Client, page_of
from stepping import until

from components import limits
from components.jobs.job import Job, Scheduler
from components.server import middleware
from components.server.app import App
from components.server.middleware import Pacing
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
    until(lambda: not (page.calls.event_ids_to_events or event.session_hash in page.calls.pending_messages_per_session))
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


OTHERS = ("evil.example", "evil.example:7860", "127.0.0.1.evil.example", "localhost.evil.example", "evil.example@", "")


@pytest.fixture
def ask(launch, monkeypatch) -> Callable[..., Callable[..., int]]:
    """Opens a page on a desktop, and returns what asks it: the status of its answer to a Host header."""
    for name in ("SPACE_ID", "INTRASLICE_HOSTED", "INTRASLICE_HOSTS", "GRADIO_SERVER_NAME"):
        monkeypatch.delenv(name, raising=False)

    def open_page(**options: object) -> Callable[..., int]:
        page = page_of(kind=lambda: App(Scheduler()))
        client = launch(page, **options)

        def status(host: str | None = None, method: str = "GET", path: str = "", **headers: str) -> int:
            headers |= {} if host is None else {"host": host}
            answer = client.http.request(method, f"{client.address}{path}", headers=headers, json={"data": [1]})
            assert answer.status_code != 403 or "INTRASLICE_HOSTS" in answer.text or "another site" in answer.text
            return answer.status_code

        status.page, status.client = page, client
        return status

    return open_page


def test_a_page_on_a_desktop_answers_to_loopback_and_to_the_names_of_its_owner(ask, monkeypatch) -> None:
    status = ask()
    for host in (None, "localhost", "LOCALHOST:7860", "127.0.0.1", "127.8.9.10:80", "[::1]", "[::1]:7860"):
        assert status(host) == 200, host
    for path in ("", "config", "gradio_api/info", "healthz", "gradio_api/run/work"):
        assert [status(host, path=path) for host in OTHERS] == [403] * len(OTHERS), path
    monkeypatch.setenv("INTRASLICE_HOSTS", "jupyter.example  Box")
    assert [status(host) for host in ("jupyter.example:443", "box", "evil.example")] == [200, 200, 403]
    status.page.share_url = "https://abc.gradio.live"
    assert [status(host) for host in ("abc.gradio.live", "xyz.gradio.live")] == [200, 403]
    assert gradio_client.Client(status.client.address, verbose=False).predict(7, api_name="/work") == 7


def test_no_page_of_another_site_sends_it_anything(ask) -> None:
    status = ask()
    sites = {"cross-site": 403, "same-site": 200, "same-origin": 200, "none": 200}
    for site, expected in sites.items():
        assert status(None, "POST", "gradio_api/run/work", **{"sec-fetch-site": site}) == expected
    assert status(None, **{"sec-fetch-site": "cross-site"}) == 200  # a link to it


@pytest.mark.parametrize("way", ["INTRASLICE_HOSTED", "GRADIO_SERVER_NAME", "server_name"])
def test_a_page_for_others_answers_to_any_name(ask, way, monkeypatch) -> None:
    value = "1" if way == "INTRASLICE_HOSTED" else "0.0.0.0"
    if way.isupper():
        monkeypatch.setenv(way, value)
    status = ask(**({} if way.isupper() else {way: value}))
    assert status("lab.example") == 200
    assert status("lab.example", "POST", "gradio_api/run/work", **{"sec-fetch-site": "cross-site"}) == 200


def test_on_the_loopback_of_ipv6_it_is_the_same(ask) -> None:
    try:
        socket.socket(socket.AF_INET6).bind(("::1", 0))
    except OSError:
        pytest.skip("this machine has no IPv6")
    status = ask(server_name="[::1]")
    assert [status(host) for host in (None, "evil.example")] == [200, 403]


CALL, JOIN, MOVE = "/gradio_api/call/evaluate", "/gradio_api/queue/join", "/gradio_api/run/ratios"


def test_calls_of_one_address_begin_one_after_the_other_but_no_call_waits_for_long(monkeypatch) -> None:
    """Those of another address do not wait, nor do slider moves and what is read."""
    slept, answered = AsyncMock(), AsyncMock()
    monkeypatch.setattr(middleware.asyncio, "sleep", slept)
    paced = Pacing(answered)

    def waits(*requests: tuple[str, ...], now: float = 100.0) -> list[float]:
        """Seconds that requests wait which come at once: path, address, and method unless it is POST."""

        async def come() -> None:
            monkeypatch.setattr(asyncio.get_running_loop(), "time", lambda: now)
            for path, address, *method in requests:
                scope = {"type": "http", "method": (*method, "POST")[0], "path": path, "headers": []}
                await paced({**scope, "client": (address, 1)}, None, None)

        slept.reset_mock()
        answered.reset_mock()
        asyncio.run(come())
        assert [call.args[0]["path"] for call in answered.await_args_list] == [path for path, *_ in requests]
        return [round(call.args[0], 6) for call in slept.await_args_list]

    ours = [(path, "1.1.1.1") for path in (CALL, JOIN, CALL)]
    assert waits(*ours, (CALL, "2.2.2.2")) == [0.0, limits.CALL_PAUSE_SECONDS, 2 * limits.CALL_PAUSE_SECONDS, 0.0]
    assert waits((CALL, "1.1.1.1"), now=100.0 + 2 * limits.CALL_PAUSE_SECONDS) == [limits.CALL_PAUSE_SECONDS]
    assert waits((CALL, "1.1.1.1"), now=200.0) == [0.0]
    assert waits((MOVE, "1.1.1.1"), (f"{CALL}/7", "1.1.1.1", "GET"), now=200.0) == []
    assert max(waits(*[(CALL, "1.1.1.1")] * 1_000, now=200.0)) == limits.MAX_CALL_PAUSE_SECONDS
    addresses = [f"1.2.{number // 250}.{number % 250}" for number in range(limits.MAX_PACED_ADDRESSES)]
    waits(*((CALL, address) for address in addresses), now=300.0)
    assert len(paced._next) <= limits.MAX_PACED_ADDRESSES
