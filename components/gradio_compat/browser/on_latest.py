"""Calls after any of several events, the last of them included."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import gradio as gr

from components.gradio_compat.browser.silent import SILENT

# A step of a longer answer, as `frame/context.py` has it.
RELAY: dict[str, Any] = {"api_visibility": "private", "api_name": "step", "queue": False, **SILENT}


def on_latest(events: Sequence[Any], **call: Any) -> gr.events.Dependency:
    """Call after any of these events, and once more at the end if others came meanwhile.

    Gradio (6.31) sends an event that came meanwhile to all its listeners again: two that keep events so would keep each
    other going for good. Hence none listens to an event itself, but to a relay in the browser of its own.
    """
    relay = gr.on(events, None, None, None, js="() => []", **RELAY)
    return relay.then(**call, trigger_mode="always_last")
