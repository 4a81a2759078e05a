"""Event options that disable gradio's progress display, which copies every output.

Where an event shows progress on its outputs, even `show_progress="hidden"`, the browser copies the value of every
output at each call, some of them large charts (`structuredClone`, called by `update_state`).
Without components to show it on, nothing is copied.

Tried with gradio 6.30 and 6.31. Test: `tests/browser/test_browser_gradio.py`.
"""

from __future__ import annotations

from typing import Any

# Keyword arguments of an event listener.
SILENT: dict[str, Any] = {"show_progress": "hidden", "show_progress_on": []}
