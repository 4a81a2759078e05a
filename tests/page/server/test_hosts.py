"""Who may call the page, by what name, and how soon: another site must not use it through its user's browser."""

import asyncio
import socket
from collections.abc import Callable
from unittest.mock import AsyncMock

import pytest
from gradio_client import Client
from gradio_pages import page_of

from components import limits
from components.jobs.job import Scheduler
from components.server import middleware
from components.server.app import App
from components.server.middleware import Pacing

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
    assert Client(status.client.address, verbose=False).predict(7, api_name="/work") == 7


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
