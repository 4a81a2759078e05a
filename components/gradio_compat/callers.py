"""Who called a handler: from which address, as which client, and whether they are still connected.

When a client leaves, gradio marks its event and asks a generator for no more; a handler that runs, or a job that it
waits for, is told nothing. So the mark is read off gradio's queue. An MCP call reaches the queue through a client of
gradio's own, which stays connected: `mcp.py` knows who is behind it.

Tried with gradio 6.30 and 6.31. Test: `tests/page/gradio_compat/test_callers.py`.
"""

from __future__ import annotations

from typing import Any

import gradio as gr
from gradio.context import LocalContext

from ..jobs.job import Caller
from .addresses import address_of
from .mcp import mcp_caller


def current_caller() -> Caller:
    """Called in a handler: its caller, whose `is_connected` any thread may call from then on.

    Where no queued event called the handler, the caller counts as connected.
    """
    request: Any = LocalContext.request.get(None)
    if (caller := mcp_caller(request)) is not None:
        return caller
    page, event_id = LocalContext.blocks.get(None), LocalContext.event_id.get(None)
    event = page._queue.event_ids_to_events.get(event_id) if page is not None and event_id is not None else None
    address = address_of(request) if isinstance(request, gr.Request) else ""
    return Caller(address, lambda: event.alive) if event is not None else Caller(address)


def client_of(request: gr.Request | str | None) -> str:
    """The kind of client that calls, and an open page's session, named by its client; of other programs the address."""
    if isinstance(request, str):
        return request
    if (caller := mcp_caller(request)) is not None:
        return f"mcp {caller.address}"
    if session := getattr(request, "session_hash", None):
        return f"session {session}"
    return f"somebody {address_of(request) if isinstance(request, gr.Request) else ''}".strip()
