"""The progress callback and its default display."""

from __future__ import annotations

import sys
import threading

import pytest
import torch

from intraslice.core.progress import Progress, ProgressDisplay, finish, progress_callback, stepwise


def show(*events: Progress) -> None:
    display = ProgressDisplay()
    for event in events:
        display(event)


def test_a_log_gets_one_line_for_each_stage_that_ends(capsys):
    steps = [Progress("calibrate", done, 2) for done in (0, 0, 1, 1, 2, 2)]
    show(*steps, Progress("slice", 0, 3), Progress("evaluate", 1, 1), *steps)
    lines = [line.rsplit(", ", 1)[0] for line in capsys.readouterr().err.splitlines()]
    assert lines == ["calibrate 2/2", "evaluate 1/1", "calibrate 2/2"]


def test_a_terminal_gets_a_bar(capsys, monkeypatch):
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


def test_a_stage_becomes_a_generator_of_its_events():
    seen, ended = [], []

    def stage(progress) -> str:
        try:
            for done in range(3):
                progress(Progress("work", done, 3))
                seen.append((done, torch.is_grad_enabled()))
        finally:
            ended.append(threading.current_thread())
        return "value"

    with torch.no_grad():
        events = stepwise(stage)
        assert next(events).done == 0
        assert seen == []  # it waits
        assert next(events).done == 1
    assert seen == [(0, False)]
    events.close()
    assert seen == [(0, False)]
    assert not ended[0].is_alive()
    assert finish(stepwise(stage)) == "value"


def test_an_error_of_a_stage_reaches_whoever_reads_its_events():
    def stage(progress) -> None:
        progress(Progress("work", 0, 1))
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        list(stepwise(stage))
