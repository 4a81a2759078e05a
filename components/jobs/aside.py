"""What waits for a network or a disk, in a thread of its own, while the worker takes others' steps."""

from __future__ import annotations

import threading
from collections.abc import Callable, Generator
from concurrent.futures import Future
from typing import TypeVar

from components.jobs.scheduler import Waiting

Result = TypeVar("Result")


def aside(function: Callable[[], Result]) -> Generator[Waiting, None, Result]:
    """What `function` returns, called in a thread of its own; a step of a job."""
    future: Future[Result] = Future()

    def call() -> None:
        try:
            future.set_result(function())
        except BaseException as error:
            future.set_exception(error)

    threading.Thread(target=call, daemon=True).start()
    while not future.done():
        yield Waiting()
    return future.result()
