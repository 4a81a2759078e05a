"""Calls without gradio's display of progress."""

# Where gradio shows progress, if only hidden, the browser copies the values of all those outputs at every call.
SILENT = {"show_progress": "hidden", "show_progress_on": []}
