"""The queue among clients who leave their calls behind. `test_server.py` asks it over HTTP."""

import asyncio
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor

import gradio as gr
import pytest
from gradio.queueing import Event, EventQueue, Queue
from gradio.server_messages import HeartbeatMessage
from gradio_pages import Client

from components.gradio_compat import queue as steady
from components.gradio_compat.blocks import PatchedBlocks

RECORDS = [{"function": "work", "status": "success", "process_time": 1.0}]


def make_page(kind: type[gr.Blocks], called: threading.Event | None = None) -> gr.Blocks:
    def work() -> float:
        if called:
            called.set()
        return 1.0

    with kind() as page:
        gr.api(work, api_name="work")
    return page


def queue_of(kind: type[gr.Blocks]) -> Queue:
    return make_page(kind).queue()._queue


def send_to_the_first_of(queue: Queue, sessions: int) -> None:
    """A message to a session that has read none of its own, after which others came."""
    for session in range(sessions):
        queue.pending_messages_per_session[f"session {session}"] = asyncio.Queue()
    (function,) = queue.blocks.fns.values()
    queue.send_message(Event("session 0", function, None, None), HeartbeatMessage())


def test_plain_gradio_drops_a_session_that_still_waits() -> None:
    with pytest.raises(KeyError, match="session 0"):
        send_to_the_first_of(queue_of(gr.Blocks), 2001)


def test_no_session_that_waits_is_dropped() -> None:
    send_to_the_first_of(queue := queue_of(PatchedBlocks), 2001)
    assert queue.pending_messages_per_session["session 0"].qsize() == 1


def test_plain_gradio_runs_a_call_that_nobody_reads(launch) -> None:
    client = launch(make_page(gr.Blocks, called := threading.Event()))
    client.join("work")
    assert called.wait(30)


def test_a_call_that_nobody_reads_costs_no_work(launch) -> None:
    client = launch(page := make_page(PatchedBlocks, called := threading.Event()))
    client.join("work")
    assert page.calls.open_calls == 1
    assert not len(page.calls)
    assert not any(page.calls.active_jobs)
    assert client.ask("work") == ("complete", [1.0])
    assert called.is_set()


def test_plain_gradio_stops_for_good_when_its_loop_fails() -> None:
    queue = queue_of(gr.Blocks)
    queue.active_jobs = [None]
    queue.event_queue_per_concurrency_id["work"] = line = EventQueue("work", 1)
    line.queue.append(object())
    queue.get_events = lambda: 1 / 0
    # In a thread of its own, since a browser of other tests has an event loop in this one.
    with ThreadPoolExecutor() as pool, pytest.raises(ZeroDivisionError):
        pool.submit(lambda: asyncio.run(queue.start_processing())).result()
    assert queue.stopped  # ours: `test_a_queue_whose_loop_ends_goes_on`


MESSAGES = "queue/data?session_hash=one"


def leave_a_call(launch, kind: type[gr.Blocks], gate: threading.Event, is_noticed: Callable[[Queue], bool]) -> Client:
    """A session calls what waits for the gate, and ends its stream; returns when the server has noticed."""

    def work() -> bool:
        return gate.wait()

    with kind() as page:
        gr.api(work, api_name="work")
    client = launch(page)
    client.http.post(f"{client.api}/queue/join", json={"data": [], "fn_index": 0, "session_hash": "one"})
    with client.http.stream("GET", f"{client.api}/{MESSAGES}") as stream:
        next(line for line in stream.iter_lines() if "process_starts" in line)
    deadline = time.monotonic() + 60
    while not is_noticed(page._queue):
        assert time.monotonic() < deadline
        time.sleep(0.01)
    return client


@pytest.fixture
def gate() -> Iterator[threading.Event]:
    opened = threading.Event()
    yield opened
    opened.set()


def test_plain_gradio_loses_a_call_when_the_stream_ends(launch, gate) -> None:
    client = leave_a_call(launch, gr.Blocks, gate, lambda queue: "one" not in queue.pending_messages_per_session)
    gate.set()
    with client.http.stream("GET", f"{client.api}/{MESSAGES}") as stream:
        assert '"session_not_found":true' in next(stream.iter_lines())


def test_a_call_survives_the_end_of_the_stream(launch, gate, monkeypatch) -> None:
    monkeypatch.setattr(steady, "GRACE", 60.0)
    client = leave_a_call(launch, PatchedBlocks, gate, lambda queue: "one" in queue._left)
    gate.set()
    assert '"msg":"process_completed"' in client.http.get(f"{client.api}/{MESSAGES}").text


def test_the_calls_of_a_session_that_does_not_come_back_end(launch, gate, monkeypatch) -> None:
    monkeypatch.setattr(steady, "GRACE", 0.0)

    def has_ended(queue: Queue) -> bool:
        return [event.alive for job in queue.active_jobs if job for event in job] == [False]

    leave_a_call(launch, PatchedBlocks, gate, has_ended)


def test_a_session_that_reads_another_stream_has_not_left() -> None:
    queue = queue_of(PatchedBlocks)
    queue.pending_messages_per_session["one"], queue._left = None, {"one": -1000.0}
    box = queue.pending_messages_per_session["one"]
    for box.readers, left in ((1, ["one"]), (0, [])):
        # In a thread of its own, since a browser of other tests has an event loop in this one.
        with ThreadPoolExecutor() as pool:
            pool.submit(lambda: asyncio.run(queue._end_calls_of_the_gone())).result()
        assert list(queue._left) == left


def test_a_call_after_a_long_pause_is_not_taken_for_an_unread_one(launch) -> None:
    client = launch(page := make_page(PatchedBlocks))
    for _ in range(2):
        client.http.post(f"{client.api}/queue/join", json={"data": [], "fn_index": 0, "session_hash": "one"})
        page.calls.tidy()
        assert '"msg":"process_completed"' in client.http.get(f"{client.api}/{MESSAGES}").text
        page.calls.pending_messages_per_session["one"]._last_seen -= 1000


@pytest.fixture
def tables(monkeypatch: pytest.MonkeyPatch) -> Iterator[list]:
    """The records of which gradio made tables."""
    made, original = [], Queue._get_df
    monkeypatch.setattr(Queue, "_get_df", staticmethod(lambda records: made.append(records) or original(records)))
    return made


def test_plain_gradio_makes_a_table_of_all_calls_after_each(launch, tables) -> None:
    client = launch(make_page(gr.Blocks), enable_monitoring=False)
    client.ask("work")
    deadline = time.monotonic() + 30
    while not tables and time.monotonic() < deadline:  # it is made once the answer is sent
        time.sleep(0.01)
    assert tables


def test_no_table_is_made(tables) -> None:
    assert queue_of(PatchedBlocks).compute_analytics_summary(RECORDS) == {"functions": {}}
    assert not tables
