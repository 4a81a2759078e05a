"""Events of gradio's frontend: a listener that runs once at a time, and options without a copy of every output.

- `on_latest` listens to several events, runs once at a time, and once more for the latest event that came meanwhile.
  That is what gradio's `trigger_mode="always_last"` promises. But an event that came while a listener ran is sent to
  all listeners of that event again: two such listeners trigger each other forever. Hence no handler listens to the
  event itself, but to a relay of its own in the browser.
- Where an event shows progress on its outputs, even `show_progress="hidden"`, the browser copies the value of every
  output at each call, some of them large charts (`structuredClone`, called by `update_state`). Without components to
  show it on (`SILENT`), nothing is copied.

Tried with gradio 6.30 and 6.31. Test: `tests/browser/test_browser_gradio.py`.
"""

from collections.abc import Sequence
from typing import Any

import gradio as gr

# Keyword arguments of an event listener that disable gradio's progress display.
SILENT: dict[str, Any] = {"show_progress": "hidden", "show_progress_on": []}


def on_latest(events: Sequence[Any], **call: Any) -> gr.events.Dependency:
    """`gr.on(events, **call)` in the mode `always_last`; returns the call's end."""
    relay = gr.on(
        events, None, None, None, js="() => []", queue=False, api_visibility="private", api_name="step", **SILENT
    )
    return relay.then(**call, trigger_mode="always_last")
