"""Entry point of the page: sets the environment, which gradio and torch read when they are imported, then serves."""

import os
import sys

from .server import process

# A thread that wants the interpreter lock waits for so long at most, at every operation of torch: with Python's default
# of 5 ms a slider's answer takes five times as long beside a job (95th percentile), and the job a fifth longer.
SWITCH_SECONDS = 0.001


def main() -> None:
    """Serve the page; gradio's environment variables set the address and the port."""
    os.environ.setdefault("GRADIO_ANALYTICS_ENABLED", "False")
    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
    # Waiting OpenMP threads sleep instead of spinning, so that they do not slow down the slider's threads.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    sys.setswitchinterval(SWITCH_SECONDS)
    process.on_signal()  # before the import below, which takes seconds
    process.open_temporary_folder()
    from .page import serve

    serve()
