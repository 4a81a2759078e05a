"""A listener for several events that runs once at a time, and once more for the latest event that came meanwhile.

That is what gradio's `trigger_mode="always_last"` promises. But an event that came while a listener ran is sent to all
listeners of that event again: two such listeners trigger each other forever. Hence no handler listens to the event
itself, but to a relay of its own in the browser.

Tried with gradio 6.30 and 6.31. Test: `tests/browser/test_browser_gradio.py`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import gradio as gr

from .silent import SILENT


def on_latest(events: Sequence[Any], **call: Any) -> gr.events.Dependency:
    """`gr.on(events, **call)` in the mode `always_last`; returns the call's end."""
    relay = gr.on(
        events, None, None, None, js="() => []", queue=False, api_visibility="private", api_name="step", **SILENT
    )
    return relay.then(**call, trigger_mode="always_last")
