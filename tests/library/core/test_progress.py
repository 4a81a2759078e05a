"""The progress callback and its default display."""

from __future__ import annotations

import inspect
import pkgutil
import sys
from collections.abc import Callable, Iterator
from importlib import import_module
from typing import Any

import pytest

import intraslice
from intraslice.core.progress import Progress, ProgressDisplay, progress_callback


def show(*events: Progress) -> None:
    display = ProgressDisplay()
    for event in events:
        display(event)


def test_a_log_gets_one_line_for_each_stage_that_ends(capsys):
    steps = [Progress("calibrate", done, 2) for done in (0, 0, 1, 1, 2, 2)]
    show(*steps, Progress("slice", 0, 3), Progress("evaluate", 1, 1), *steps)
    lines = [line.rsplit(", ", 1)[0] for line in capsys.readouterr().err.splitlines()]
    assert lines == ["calibrate 2/2", "evaluate 1/1", "calibrate 2/2"]


def test_a_stage_with_stages_inside_gets_one_line_and_all_of_its_time(capsys, monkeypatch):
    times = iter(map(float, range(100)))
    monkeypatch.setattr("intraslice.core.progress.time.monotonic", lambda: next(times))
    inside = [Progress("slice", 0, 1), Progress("slice", 1, 1)]
    show(Progress("sweep", 0, 2), *inside, Progress("sweep", 1, 2), *inside, Progress("sweep", 2, 2))
    assert capsys.readouterr().err.splitlines() == ["slice 1/1, 1.0 s", "slice 1/1, 1.0 s", "sweep 2/2, 5.0 s"]


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


# Stages are plain functions

STREAMS = {"generate_text", "stream_tokens"}  # iterators of text and tokens, which is what people expect there
LAZY = ("Generator", "Iterator", "Iterable")


def functions() -> Iterator[tuple[str, Callable[..., Any]]]:
    """Every function of the library, and every method of its classes, by its full name."""
    for module in pkgutil.walk_packages(intraslice.__path__, "intraslice."):
        if module.name.endswith("__main__"):
            continue
        for value in vars(import_module(module.name)).values():
            if getattr(value, "__module__", None) != module.name:
                continue
            members = vars(value).values() if inspect.isclass(value) else [value]
            for member in members:
                if inspect.isfunction(member):
                    yield f"{module.name}.{member.__qualname__}", member


def is_lazy(function: Callable[..., Any]) -> bool:
    """Whether nothing happens until somebody reads what a call returns."""
    returned = str(inspect.signature(function).return_annotation)
    return inspect.isgeneratorfunction(inspect.unwrap(function)) or returned.startswith(LAZY)


def test_no_public_function_returns_a_generator_but_streaming():
    public = {name: getattr(intraslice, name) for name in intraslice.__all__}
    lazy = {name for name, value in public.items() if inspect.isfunction(value) and is_lazy(value)}
    assert lazy == STREAMS & public.keys()


def test_every_stage_returns_its_value_and_takes_progress_by_name():
    stages = {name: function for name, function in functions() if "progress" in inspect.signature(function).parameters}
    assert {"calibrate", "slice_model", "measure_losses", "sweep", "write_gguf", "compress"} <= {
        name.rpartition(".")[2] for name in stages
    }
    assert [name for name, function in stages.items() if is_lazy(function)] == []
    for name, function in stages.items():
        parameter = inspect.signature(function).parameters["progress"]
        if parameter.default is True:
            assert parameter.kind is inspect.Parameter.KEYWORD_ONLY, name


def test_public_stages_display_their_progress_by_default():
    for name in intraslice.__all__:
        value = getattr(intraslice, name)
        if inspect.isfunction(value) and "progress" in (parameters := inspect.signature(value).parameters):
            assert parameters["progress"].default is True, name
