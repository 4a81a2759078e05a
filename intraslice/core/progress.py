"""What every long job yields while it works, and how to run one to its end."""

from __future__ import annotations

from collections.abc import Callable, Generator
from dataclasses import dataclass
from typing import TypeVar

T = TypeVar("T")
Event = TypeVar("Event", bound="Progress")


@dataclass(frozen=True)
class Progress:
    """What every long job yields: `done` of `total` steps of `stage`."""

    stage: str
    done: int
    total: int


def repeating(event: Event, job: Generator[object, None, T]) -> Generator[Event, None, T]:
    """The job's value, and the event again for each of its steps, which tell nothing themselves."""
    while True:
        try:
            next(job)
        except StopIteration as stop:
            return stop.value
        yield event


def finish(job: Generator[Progress, None, T], on_progress: Callable[[Progress], None] | None = None) -> T:
    """Run a job to its end, hand each event to `on_progress`, and return the job's value."""
    while True:
        try:
            event = next(job)
        except StopIteration as stop:
            return stop.value
        if on_progress is not None:
            on_progress(event)
