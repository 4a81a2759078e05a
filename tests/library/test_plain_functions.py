"""Stages are plain functions: they return their values, and report progress to a callback."""

from __future__ import annotations

import inspect
import pkgutil
from collections.abc import Callable, Iterator
from importlib import import_module
from typing import Any

import intraslice

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
