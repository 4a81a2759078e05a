"""Streams of messages: a session's calls share one, and none is lost where it ends."""

import json
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor, TimeoutError, as_completed
from itertools import islice

import gradio as gr
import httpx
import pytest
from gradio_pages import Client
from starlette.middleware import Middleware

from components.gradio_compat.blocks import PatchedBlocks
from components.gradio_compat.http import streams

DATA = "queue/data?session_hash=one"


def launched(launch, kind: type[gr.Blocks]) -> Client:
    with kind() as page:
        gr.api(lambda: None, api_name="work")
    mailboxes = Middleware(streams.OpenStreams, lambda session: page._queue.pending_messages_per_session.get(session))
    return launch(page, app_kwargs={"middleware": [mailboxes] if kind is PatchedBlocks else []})


def call(client: Client) -> str:
    body = {"data": [], "fn_index": 0, "session_hash": "one"}
    return client.http.post(f"{client.api}/queue/join", json=body).json()["event_id"]


def messages(stream: httpx.Response) -> Iterator[dict]:
    return (json.loads(line.removeprefix("data: ")) for line in stream.iter_lines() if line)


def answered(stream: Iterator[dict]) -> str:
    return next(message["event_id"] for message in stream if message["msg"] == "process_completed")


def test_plain_gradio_accepts_a_call_whose_page_takes_its_stream_for_open(launch) -> None:
    client = launched(launch, gr.Blocks)
    call(client)
    with client.http.stream("GET", f"{client.api}/{DATA}") as stream:
        answered(received := messages(stream))
        call(client)  # accepted before the page reads that the stream has ended
        assert [message["msg"] for message in received] == ["close_stream"]


def test_calls_that_follow_are_answered_in_the_same_stream(launch, monkeypatch) -> None:
    monkeypatch.setattr(streams, "IDLE", 60.0)
    client = launched(launch, PatchedBlocks)
    first = call(client)
    with client.http.stream("GET", f"{client.api}/{DATA}") as stream:
        received = messages(stream)
        assert answered(received) == first
        for _ in range(2):
            assert call(client) == answered(received)


def test_no_call_is_accepted_until_the_page_has_closed_its_stream(launch, monkeypatch) -> None:
    monkeypatch.setattr(streams, "IDLE", 0.0)
    monkeypatch.setattr(streams, "CLOSING", 60.0)
    client = launched(launch, PatchedBlocks)
    call(client)
    with ThreadPoolExecutor() as pool:
        with client.http.stream("GET", f"{client.api}/{DATA}") as stream:
            received = messages(stream)
            answered(received)
            assert next(received)["msg"] == "close_stream"
            second: Future[str] = pool.submit(call, client)
            with pytest.raises(TimeoutError):
                second.result(timeout=0.3)
        event = second.result(timeout=30)
    with client.http.stream("GET", f"{client.api}/{DATA}") as stream:
        assert answered(messages(stream)) == event


def test_a_page_that_does_not_close_its_stream_can_call_again(launch, monkeypatch) -> None:
    for name in ("IDLE", "CLOSING"):
        monkeypatch.setattr(streams, name, 0.05)
    client = launched(launch, PatchedBlocks)
    for _ in range(2):
        event = call(client)
        with client.http.stream("GET", f"{client.api}/{DATA}") as stream:
            received = messages(stream)
            assert answered(received) == event
            assert [message["msg"] for message in received] == ["close_stream"]


def test_calls_that_wait_for_the_end_of_a_stream_are_bounded(launch, monkeypatch) -> None:
    monkeypatch.setattr(streams, "IDLE", 0.0)
    monkeypatch.setattr(streams, "CLOSING", 60.0)
    monkeypatch.setenv("INTRASLICE_MAX_VISITOR_CALLS", "3")
    client = launched(launch, PatchedBlocks)
    call(client)
    with ThreadPoolExecutor(12) as pool:
        with client.http.stream("GET", f"{client.api}/{DATA}") as stream:
            received = messages(stream)  # whose end would close it
            assert next(message for message in received if message["msg"] == "close_stream")
            body = {"data": [], "fn_index": 0, "session_hash": "one"}
            posts = [pool.submit(httpx.post, f"{client.api}/queue/join", json=body, timeout=60) for _ in range(12)]
            refused = [post.result().status_code for post in islice(as_completed(posts), 9)]
        assert sorted(post.result().status_code for post in posts) == [200] * 3 + [503] * 9
    assert refused == [503] * 9


def test_the_messages_of_an_idle_page_are_not_forgotten_for_new_sessions(launch, monkeypatch) -> None:
    monkeypatch.setattr(streams, "IDLE", 60.0)
    monkeypatch.setenv("INTRASLICE_MAX_CALLS", "3")  # one more than the session's own: an answered call lingers
    client = launched(launch, PatchedBlocks)
    call(client)
    with client.http.stream("GET", f"{client.api}/{DATA}") as stream:
        received = messages(stream)
        answered(received)
        for _ in range(8):
            client.ask("work")
        assert call(client) == answered(received)


def test_a_session_with_a_long_name_is_refused(launch) -> None:
    client = launched(launch, PatchedBlocks)
    body = {"data": [], "fn_index": 0, "session_hash": "x" * 101}
    answer = client.http.post(f"{client.api}/queue/join", json=body)
    assert (answer.status_code, "at most 100 characters" in answer.text) == (400, True)
