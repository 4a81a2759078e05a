"""Told to end, the page ends: at once, with exit status 0, and with nothing left behind."""

import contextlib
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[3]

BUSY = """
import torch
from components import start

def multiplying(job):
    product = torch.eye(300)
    print("busy", flush=True)
    while True:
        product = torch.mm(product, product)
        if {checkpoints}:
            job.checkpoint()

def with_a_busy_session(open_folder=start.open_temporary_folder):
    open_folder()  # before gradio is imported
    from components import page

    class Busy(page.Session):
        def __init__(self):
            super().__init__()
            self.jobs.scheduler.start("somebody", multiplying)

    page.Session = Busy

start.open_temporary_folder = with_a_busy_session
start.main()
"""
IDLE = "from components import start; print('idle', flush=True); start.main()"
STARTING = """
import runpy
from components.server import shutdown

def on_signal():
    set_up()
    print("starting", flush=True)

set_up, shutdown.on_signal = shutdown.on_signal, on_signal
runpy.run_path("app.py", run_name="__main__")
"""


@pytest.mark.parametrize(
    ("script", "seconds"),
    [
        pytest.param(STARTING, 0.3, id="starting"),
        pytest.param(BUSY.format(checkpoints=False), None, id="one endless step"),
        pytest.param(BUSY.format(checkpoints=True), None, id="steps", marks=pytest.mark.slow),
        pytest.param(IDLE, None, id="idle", marks=pytest.mark.slow),
    ],
)
def test_told_to_end_it_ends(script, seconds, tmp_path) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    environment = {**os.environ, "GRADIO_SERVER_PORT": str(port), "GRADIO_TEMP_DIR": str(tmp_path)}
    output = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
    process = subprocess.Popen([sys.executable, "-c", script], cwd=ROOT, env=environment, **output)
    try:
        process.stdout.readline()  # the signal is expected from here on
        while seconds is None:  # until it is open
            with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=1):
                seconds = 1.0
            time.sleep(0.1)
        time.sleep(seconds)
        process.send_signal(signal.SIGTERM)
        said = process.communicate(timeout=60)[0]
    finally:
        process.kill()
    assert process.returncode == 0, said
    assert "terminate" not in said
    assert "Traceback" not in said
    assert [path.name for path in tmp_path.iterdir()] in ([], [".lock"])
