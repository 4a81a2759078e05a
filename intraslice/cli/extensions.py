"""Extension commands of other packages, which the library does not know by name.

An installed package names each in the entry point group `intraslice_commands`. In a clone, which may not be installed,
each file in a folder of that name, of any package next to the library, is a command.
"""

from __future__ import annotations

import argparse
from importlib import import_module
from importlib.metadata import entry_points
from pathlib import Path
from typing import Protocol, cast, runtime_checkable

from intraslice.cli.run import CommandResult, Run

CLONE = Path(__file__).parents[2]
GROUP = "intraslice_commands"


@runtime_checkable
class Extension(Protocol):
    """An extension module, which every command imports. The first line of its docstring is the command's help."""

    __doc__: str

    def add_options(self, command: argparse.ArgumentParser) -> None: ...

    def run(self, run: Run) -> CommandResult: ...


def extensions() -> dict[str, Extension]:
    """Extensions by command name; those of a clone instead of installed ones of the same name."""
    modules = {point.name: point.module for point in entry_points(group=GROUP)}
    if (CLONE / "pyproject.toml").is_file():
        modules |= {file.stem: f"{file.parts[-3]}.{GROUP}.{file.stem}" for file in CLONE.glob(f"*/{GROUP}/[!_]*.py")}
    return {name: cast(Extension, import_module(module)) for name, module in sorted(modules.items())}
