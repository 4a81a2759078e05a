"""Commands from outside: every file in a folder `intraslice_commands` beside the library, by its name.

The folder has no `__init__.py`, so that several packages may each bring a part of it. The library names none of them.
"""

from __future__ import annotations

import argparse
from importlib import import_module
from importlib.util import find_spec
from pkgutil import iter_modules
from typing import Protocol, cast, runtime_checkable

from intraslice.cli.run import Answer, Run

FOLDER = "intraslice_commands"


@runtime_checkable
class Extension(Protocol):
    """Such a file. The first line of its docstring is the command's help; all commands import it, so it is light."""

    __doc__: str

    def add_options(self, command: argparse.ArgumentParser) -> None: ...

    def run(self, run: Run) -> Answer: ...


def extensions() -> dict[str, Extension]:
    """By the command's name; none where there is no such folder."""
    spec = find_spec(FOLDER)
    names = [found.name for found in iter_modules(spec.submodule_search_locations)] if spec else []
    return {name: cast(Extension, import_module(f"{FOLDER}.{name}")) for name in sorted(names)}
