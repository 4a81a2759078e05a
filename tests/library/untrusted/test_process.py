"""A process that works on what untrusted clients sent: its answer, and how it ends when it takes too much."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest

from intraslice.untrusted import process
from intraslice.untrusted.process import Bounds, run_in_subprocess

BOUNDS = Bounds(memory=400 * 2**20, seconds=1)


@pytest.fixture
def script(tmp_path, monkeypatch):
    """Makes the script `script` with a body of `run`."""

    def write(body: str) -> None:
        (tmp_path / "child.py").write_text(Path(process.HERE, "child.py").read_text())
        (tmp_path / "script.py").write_text(f"import os, sys, time\ndef run(**given):\n    {body}\n")
        monkeypatch.setattr(process, "HERE", tmp_path)

    return write


def test_answers_come_back_as_they_are(script):
    script("return given | {'answer': 'half a pair \\ud800, é'}")
    assert run_in_subprocess("script", BOUNDS, value=[1, None, "é"]) == {
        "value": [1, None, "é"],
        "answer": "half a pair \ud800, é",
    }


def test_it_is_another_process_with_the_same_packages_and_no_secrets(script, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "correct-horse")
    script("return [os.getpid(), sys.path, sys.flags.isolated, dict(os.environ)]")
    pid, path, isolated, environment = run_in_subprocess("script", BOUNDS)
    assert "correct-horse" not in environment.values()
    assert pid != os.getpid()
    assert path == sys.path
    assert isolated == 1


def test_errors_come_back_in_their_words(script):
    script("raise RuntimeError('broken ' * 100)")
    with pytest.raises(ValueError, match="broken") as caught:
        run_in_subprocess("script", BOUNDS)
    assert len(str(caught.value)) <= 200


@pytest.mark.parametrize(
    ("body", "words"),
    [
        pytest.param("return len('x' * 10**9)", "it takes more than 400 MiB", id="memory"),
        pytest.param("os._exit(3)", "crashes the library that reads it", id="end"),
        pytest.param("while True: pass", "it takes more than 1 s", id="work"),
        pytest.param("time.sleep(60)", "it takes more than 1 s", id="sleep"),
    ],
)
@pytest.mark.skipif(sys.platform != "linux", reason="other systems bound no memory")
def test_what_takes_too_much_is_ended(body, words, script, monkeypatch):
    monkeypatch.setattr(process, "TIMEOUT_FACTOR", 1 if "sleep" in body else 10)
    script(body)
    with pytest.raises(ValueError, match=words):
        run_in_subprocess("script", BOUNDS)
