"""The queue and its streams among clients who leave their calls behind. `test_server.py` asks it over HTTP."""

import asyncio
import json
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor, TimeoutError, as_completed
from itertools import islice

import gradio as gr
import httpx
import pytest
from gradio.queueing import Event, Queue
from gradio.server_messages import HeartbeatMessage
from gradio_pages import Client, page_of
from starlette.middleware import Middleware
from stepping import until

from components import limits
from components.gradio_compat import streams
from components.gradio_compat.blocks import PatchedBlocks


def make_page(kind: type[gr.Blocks], act: Callable[[], object] = lambda: None) -> gr.Blocks:
    def work() -> float:
        act()
        return 1.0

    return page_of(work, kind)


def queue_of(kind: type[gr.Blocks]) -> Queue:
    return make_page(kind).queue()._queue


def tidy(queue: Queue) -> None:
    """In a thread of its own, since a browser of other tests has an event loop in this one."""
    with ThreadPoolExecutor() as pool:
        pool.submit(lambda: asyncio.run(queue.tidy())).result()


def send_to_the_first_of(queue: Queue, sessions: int) -> None:
    """A message to a session that has read none of its own, after which others came."""
    for session in range(sessions):
        queue.pending_messages_per_session[f"session {session}"] = asyncio.Queue()
    (function,) = queue.blocks.fns.values()
    queue.send_message(Event("session 0", function, None, None), HeartbeatMessage())


def test_plain_gradio_drops_a_session_that_still_waits_and_ours_none() -> None:
    with pytest.raises(KeyError, match="session 0"):
        send_to_the_first_of(queue_of(gr.Blocks), 2001)
    send_to_the_first_of(queue := queue_of(PatchedBlocks), 2001)
    assert queue.pending_messages_per_session["session 0"].qsize() == 1


MESSAGES = "queue/data?session_hash=one"


def leave_a_call(launch, gate: threading.Event, is_noticed: Callable[[Queue], bool]) -> Client:
    """A session calls what waits for the gate, and ends its stream; returns when the server has noticed."""
    client = launch(page := make_page(PatchedBlocks, gate.wait))
    call(client)
    with client.http.stream("GET", f"{client.api}/{MESSAGES}") as stream:
        next(line for line in stream.iter_lines() if "process_starts" in line)
    until(lambda: is_noticed(page._queue))
    return client


@pytest.fixture
def gate() -> Iterator[threading.Event]:
    opened = threading.Event()
    yield opened
    opened.set()


def test_a_call_survives_the_end_of_the_stream(launch, gate, monkeypatch) -> None:
    monkeypatch.setattr(limits, "GRACE_SECONDS", 60.0)
    client = leave_a_call(launch, gate, lambda queue: "one" in queue._left)
    gate.set()
    assert '"msg":"process_completed"' in client.http.get(f"{client.api}/{MESSAGES}").text


def test_the_calls_of_a_session_that_does_not_come_back_end(launch, gate, monkeypatch) -> None:
    monkeypatch.setattr(limits, "GRACE_SECONDS", 0.0)
    leave_a_call(launch, gate, lambda queue: [one.alive for job in queue.active_jobs if job for one in job] == [False])


@pytest.mark.parametrize(("has_read", "readers", "goes_on"), [(False, 0, False), (False, 1, True), (True, 0, True)])
def test_the_calls_of_a_session_that_reads_another_stream_go_on(has_read, readers, goes_on) -> None:
    queue = queue_of(PatchedBlocks)
    (function,) = queue.blocks.fns.values()
    queue.active_jobs = [[event := Event("one", function, None, None)]]
    queue.pending_messages_per_session["one"] = None
    box = queue.pending_messages_per_session["one"]
    box.readers, ended = readers, box._last_seen - 2 * limits.GRACE_SECONDS  # the first stream
    queue._left = {"one": ended}
    if not has_read:
        box._last_seen -= 3 * limits.GRACE_SECONDS
    tidy(queue)
    assert (event.alive, queue._left) == (goes_on, {})


def test_a_call_after_a_long_pause_is_not_taken_for_an_unread_one(launch) -> None:
    client = launch(page := make_page(PatchedBlocks))
    for _ in range(2):
        call(client)
        tidy(page.calls)
        assert '"msg":"process_completed"' in client.http.get(f"{client.api}/{MESSAGES}").text
        page.calls.pending_messages_per_session["one"]._last_seen -= 1000


def test_no_table_of_all_calls_is_made_after_each(launch, monkeypatch) -> None:
    monkeypatch.setattr(Queue, "_get_df", None)
    client = launch(page := make_page(PatchedBlocks), enable_monitoring=False)
    assert client.ask("work") == ("complete", [1.0])
    until(lambda: not page.calls.open_calls)


def launched(launch, page: gr.Blocks) -> Client:
    mailboxes = Middleware(streams.open_streams, lambda session: page._queue.pending_messages_per_session.get(session))
    return launch(page, app_kwargs={"middleware": [mailboxes]})


def join(client: Client, session: str = "one") -> httpx.Response:
    return client.http.post(f"{client.api}/queue/join", json={"data": [], "fn_index": 0, "session_hash": session})


def call(client: Client) -> str:
    return join(client).json().get("event_id")


def messages(stream: httpx.Response) -> Iterator[dict]:
    return (json.loads(line.removeprefix("data: ")) for line in stream.iter_lines() if line)


def answered(stream: Iterator[dict]) -> str:
    return next(message["event_id"] for message in stream if message["msg"] == "process_completed")


def test_calls_that_follow_are_answered_in_the_same_stream_which_new_sessions_do_not_displace(
    launch, monkeypatch
) -> None:
    monkeypatch.setattr(limits, "STREAM_IDLE_SECONDS", 60.0)
    monkeypatch.setenv("INTRASLICE_MAX_CALLS", "3")  # one more than the session's own: an answered call lingers
    client = launched(launch, make_page(PatchedBlocks))
    first = call(client)
    with client.http.stream("GET", f"{client.api}/{MESSAGES}") as stream:
        received = messages(stream)
        assert answered(received) == first
        for others in (0, 8):
            for _ in range(others):
                client.ask("work")
            assert call(client) == answered(received)


def test_no_call_is_accepted_until_the_page_has_closed_its_stream(launch, monkeypatch) -> None:
    """And so many may wait for that; a page that does not close it can call again after a while."""
    monkeypatch.setattr(limits, "STREAM_IDLE_SECONDS", 0.0)
    monkeypatch.setattr(limits, "STREAM_CLOSING_SECONDS", 60.0)
    monkeypatch.setenv("INTRASLICE_MAX_VISITOR_CALLS", "3")
    client = launched(launch, page := make_page(PatchedBlocks))
    call(client)
    with ThreadPoolExecutor(12) as pool:
        with client.http.stream("GET", f"{client.api}/{MESSAGES}") as stream:
            received = messages(stream)  # whose end would close it
            assert next(message for message in received if message["msg"] == "close_stream")
            assert stream.headers["cache-control"] == "no-store"
            second: Future[str] = pool.submit(call, client)
            until(lambda: page._queue.pending_messages_per_session["one"].calls_coming == 1)
            with pytest.raises(TimeoutError):
                second.result(timeout=0.3)
            posts = [pool.submit(join, client) for _ in range(11)]
            refused = [post.result().status_code for post in islice(as_completed(posts), 9)]
        assert sorted(post.result().status_code for post in posts) == [200] * 2 + [503] * 9
    assert refused == [503] * 9
    monkeypatch.setattr(limits, "STREAM_CLOSING_SECONDS", 0.05)
    with client.http.stream("GET", f"{client.api}/{MESSAGES}") as stream:
        assert second.result() in {message.get("event_id") for message in messages(stream)}
        assert call(client)


def test_a_call_that_is_accepted_as_the_pause_ends_keeps_the_stream_open() -> None:
    async def accept(box: streams.Mailbox) -> None:
        async with box.calling():
            box.put_nowait("estimation")

    async def is_kept() -> bool:
        box, loop = streams.Mailbox(), asyncio.get_running_loop()
        waits = loop.create_task(box.called_before(loop.create_future(), 0.01))
        await asyncio.sleep(0)
        loop.call_later(0.01, lambda: next(accept(box).__await__(), None))
        time.sleep(0.02)  # the loop finds that both are due: the end of the pause, then the call
        return await waits

    with ThreadPoolExecutor() as pool:  # see `tidy`
        assert pool.submit(lambda: asyncio.run(is_kept())).result()


def test_a_session_with_a_long_name_is_refused(launch) -> None:
    answer = join(launched(launch, make_page(PatchedBlocks)), "x" * 101)
    assert (answer.status_code, "at most 100 characters" in answer.text) == (400, True)
