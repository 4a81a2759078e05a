"""The folder of a page's process: empty at its start, gone at its end, killed or not."""

import signal
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[3]
PAGE = """
import os, time
from components.server import shutdown
from components.server.temporary_folder import open_temporary_folder
shutdown.on_signal()
folder = open_temporary_folder()
assert os.environ["GRADIO_TEMP_DIR"] == str(folder)
(folder / "upload").mkdir()
(folder / "upload" / "text.txt").write_text("x")
print(folder, flush=True)
time.sleep(60)
"""


def start(home: Path) -> tuple[subprocess.Popen, Path]:
    process = subprocess.Popen(
        [sys.executable, "-c", PAGE], cwd=ROOT, env={"GRADIO_TEMP_DIR": str(home)}, stdout=subprocess.PIPE, text=True
    )
    return process, Path(process.stdout.readline().strip())


@pytest.mark.parametrize("how", [signal.SIGTERM, signal.SIGKILL])
def test_a_page_leaves_nothing_behind_and_spares_what_another_has(how, tmp_path) -> None:
    first, folder = start(tmp_path)
    other, others = start(tmp_path)
    try:
        assert folder != others
        assert (folder / "upload" / "text.txt").is_file()
        first.send_signal(how)
        first.wait()
        assert folder.exists() == (how is signal.SIGKILL)
        third, _ = start(tmp_path)
        third.kill()
        third.wait()
        assert not folder.exists()
        assert (others / "upload" / "text.txt").is_file()
    finally:
        for process in (first, other):
            process.kill()
            process.wait()
