"""Whether the caller of a handler is still connected.

When a client leaves, gradio marks its event and asks a generator for no more; a handler that runs, or a job that it
waits for, is told nothing. So the mark is read off gradio's queue.

Tried with gradio 6.25 and 6.31. Test: `tests/page/gradio_compat/test_connection.py`.
"""

from __future__ import annotations

from collections.abc import Callable

from gradio.context import LocalContext


def connection_check() -> Callable[[], bool]:
    """Called in a handler: a function `is_connected()` that any thread may call from then on.

    Where no queued event called the handler, the function always answers True.
    """
    page, event_id = LocalContext.blocks.get(None), LocalContext.event_id.get(None)
    event = page._queue.event_ids_to_events.get(event_id) if page is not None and event_id is not None else None
    return (lambda: event.alive) if event is not None else (lambda: True)
