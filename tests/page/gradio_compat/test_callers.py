"""Whether the caller of a handler is still connected."""

import threading
import time
from collections.abc import Iterator

import gradio as gr

from components.gradio_compat.blocks import PatchedBlocks
from components.gradio_compat.callers import current_caller


def test_plain_gradio_tells_a_running_handler_nothing_and_ours_asks(launch) -> None:
    checks, may_end, ended = [], threading.Event(), threading.Event()

    def work() -> Iterator[float]:
        checks.append(current_caller().is_connected)
        try:
            yield 0.0
            may_end.wait(60)
            yield 1.0
        finally:
            ended.set()

    with PatchedBlocks() as page:
        gr.api(work, api_name="work")
    client = launch(page)
    with client.http.stream("GET", f"{client.api}/call/work/{client.join('work')}") as stream:
        lines = stream.iter_lines()  # kept, since httpx closes the connection with it
        next(line for line in lines if line == "event: generating")
        (is_connected,) = checks
        assert is_connected()
    deadline = time.monotonic() + 30
    while is_connected() and time.monotonic() < deadline:
        time.sleep(0.01)
    assert not is_connected()
    assert not ended.is_set()  # gradio itself only asks for no more
    may_end.set()
    assert ended.wait(30)


def test_outside_of_a_call_there_is_nobody_to_leave() -> None:
    assert current_caller().is_connected()
