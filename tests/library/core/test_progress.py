"""The progress callback and its default display."""

import inspect
import sys
from types import SimpleNamespace

import pytest

import intraslice
from intraslice.core.progress import Progress, ProgressDisplay, progress_callback


def show(*events: Progress) -> None:
    display = ProgressDisplay()
    for event in events:
        display(event)


def test_a_log_gets_one_line_for_each_stage_that_ends_and_a_terminal_a_bar(capsys, monkeypatch):
    steps = [Progress("calibrate", done, 2) for done in (0, 0, 1, 1, 2, 2)]
    show(*steps, Progress("slice", 0, 3), Progress("evaluate", 1, 1), *steps)
    lines = [line.rsplit(", ", 1)[0] for line in capsys.readouterr().err.splitlines()]
    assert lines == ["calibrate 2/2", "evaluate 1/1", "calibrate 2/2"]
    times = iter(map(float, range(100)))
    monkeypatch.setattr("intraslice.core.progress.time", SimpleNamespace(monotonic=lambda: next(times)))
    inside = [Progress("slice", 0, 1), Progress("slice", 1, 1)]
    show(Progress("sweep", 0, 2), *inside, Progress("sweep", 1, 2), *inside, Progress("sweep", 2, 2))
    assert capsys.readouterr().err.splitlines() == ["slice 1/1, 1.0 s", "slice 1/1, 1.0 s", "sweep 2/2, 5.0 s"]
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True, raising=False)
    show(*[Progress("calibrate", done, 32) for done in (0, 16, 32)])
    assert "calibrate: 100%" in capsys.readouterr().err


def test_a_stage_takes_a_callback_or_a_switch(capsys):
    seen: list[Progress] = []
    assert progress_callback(seen.append) == seen.append
    progress_callback(False)(Progress("slice", 1, 1))
    assert capsys.readouterr().err == ""
    with pytest.raises(TypeError):
        progress_callback("bar")


def test_public_stages_display_their_progress_by_default():
    for name in intraslice.__all__:
        value = getattr(intraslice, name)
        if inspect.isfunction(value) and "progress" in (parameters := inspect.signature(value).parameters):
            assert parameters["progress"].default is True, name
