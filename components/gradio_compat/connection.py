"""Whether a caller still listens."""

from __future__ import annotations

from collections.abc import Callable

from gradio.context import LocalContext


def connection_check() -> Callable[[], bool]:
    """Called in a handler: what tells from then on whether its caller still hears of it.

    Gradio marks an event when its stream is closed, and then no longer asks a generator for more; nothing else would
    tell a job that nobody listens.
    """
    blocks, event_id = LocalContext.blocks.get(None), LocalContext.event_id.get(None)
    event = blocks._queue.event_ids_to_events.get(event_id) if blocks is not None else None
    return (lambda: event.alive) if event is not None else (lambda: True)
