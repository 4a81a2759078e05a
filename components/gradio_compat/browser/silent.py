"""Calls without gradio's display of progress."""

from __future__ import annotations

from typing import Any

# Where gradio shows progress, if only hidden, the browser copies the values of all those outputs at every call.
SILENT: dict[str, Any] = {"show_progress": "hidden", "show_progress_on": []}
