"""Commands from outside: every file in a folder `intraslice_commands` of a package beside the library, by its name.

The library names no such package: it looks where it lies itself, in a clone as where it is installed.
"""

from __future__ import annotations

import argparse
from importlib import import_module
from pathlib import Path
from typing import Protocol, cast, runtime_checkable

from intraslice.cli.run import Answer, Run

BESIDE = Path(__file__).parents[2]
FOLDER = "intraslice_commands"


@runtime_checkable
class Extension(Protocol):
    """Such a file. The first line of its docstring is the command's help; all commands import it, so it is light."""

    __doc__: str

    def add_options(self, command: argparse.ArgumentParser) -> None: ...

    def run(self, run: Run) -> Answer: ...


def extensions() -> dict[str, Extension]:
    """By the command's name; none where no package has such a folder."""
    files = sorted(BESIDE.glob(f"*/{FOLDER}/[!_]*.py"), key=lambda file: file.stem)
    modules = (f"{file.parts[-3]}.{FOLDER}.{file.stem}" for file in files)
    return {name.rpartition(".")[2]: cast(Extension, import_module(name)) for name in modules}
