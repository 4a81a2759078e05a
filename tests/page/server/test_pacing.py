"""Calls of one network address begin one after the other, and keep nobody else waiting."""

import asyncio

import pytest

from components.server import pacing
from components.server.pacing import MAX_WAIT, PAUSE, Pacing

CALL, JOIN, MOVE = "/gradio_api/call/evaluate", "/gradio_api/queue/join", "/gradio_api/run/ratios"


def scope(path: str, address: str, method: str = "POST") -> dict:
    return {"type": "http", "method": method, "path": path, "headers": [], "client": (address, 1)}


@pytest.fixture
def waits(monkeypatch):
    """A function that lets requests come at once, and returns the seconds that each of them waits."""

    async def sleep(seconds: float) -> None:
        slept.append(seconds)

    async def answer(scope, receive, send) -> None:
        answered.append(scope["path"])

    slept, answered = [], []
    monkeypatch.setattr(pacing.asyncio, "sleep", sleep)
    paced = Pacing(answer)

    def come(*scopes: dict, now: float = 100.0) -> list[float]:
        async def all_of_them() -> None:
            monkeypatch.setattr(asyncio.get_running_loop(), "time", lambda: now)
            for one in scopes:
                await paced(one, None, None)

        slept.clear()
        answered.clear()
        asyncio.run(all_of_them())
        assert answered == [one["path"] for one in scopes]
        return [round(seconds, 6) for seconds in slept]

    come.paced = paced
    return come


def test_calls_of_an_address_begin_one_after_the_other_and_those_of_another_at_once(waits) -> None:
    found = waits(*(scope(path, "1.1.1.1") for path in (CALL, JOIN, CALL)), scope(CALL, "2.2.2.2"))
    assert found == [0.0, PAUSE, 2 * PAUSE, 0.0]
    assert waits(scope(CALL, "1.1.1.1"), now=100.0 + 2 * PAUSE) == [PAUSE]
    assert waits(scope(CALL, "1.1.1.1"), now=200.0) == [0.0]


def test_slider_moves_and_what_is_read_never_wait(waits) -> None:
    waits(scope(CALL, "1.1.1.1"))
    assert waits(scope(MOVE, "1.1.1.1"), scope(f"{CALL}/7", "1.1.1.1", "GET")) == []


def test_nobody_waits_for_long_and_addresses_are_forgotten(waits) -> None:
    found = waits(*(scope(CALL, "1.1.1.1") for _ in range(1_000)))
    assert max(found) == MAX_WAIT
    waits(*(scope(CALL, f"1.2.{number // 250}.{number % 250}") for number in range(pacing.MAX_ADDRESSES)), now=200.0)
    assert len(waits.paced._next) <= pacing.MAX_ADDRESSES
