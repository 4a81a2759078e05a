"""A command from outside is a file in a folder of a package beside the library; the library names none."""

from __future__ import annotations

from pathlib import Path

import pytest

from intraslice.__main__ import main
from intraslice.cli import extensions
from intraslice.cli.parser import parser

GREET = '''
"""Greet somebody.

More of it.
"""

def add_options(command):
    command.add_argument("--whom", required=True)


def run(run):
    return {"greeted": run.arguments.whom}, f"hello {run.arguments.whom}, at {run.recipe.slicing.sparsity:g}"
'''


def test_a_file_in_the_folder_is_a_command(tmp_path: Path, monkeypatch, capsys) -> None:
    folder = tmp_path / "greetings" / extensions.GROUP
    folder.mkdir(parents=True)
    (tmp_path / "pyproject.toml").touch()
    (folder / "greet.py").write_text(GREET.lstrip())
    monkeypatch.setattr(extensions, "CLONE", tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    assert main(["greet", "--whom", "you", "--sparsity", "0.2"]) == 0
    assert capsys.readouterr().out == "hello you, at 0.2\n"
    with pytest.raises(SystemExit):
        parser().parse_args(["--help"])
    assert "greet somebody\n" in capsys.readouterr().out


def test_without_the_folder_there_are_the_librarys_own(monkeypatch) -> None:
    monkeypatch.setattr(extensions, "GROUP", "no_such_folder")
    assert extensions.extensions() == {}
    assert parser().parse_args(["ratios"]).command == "ratios"


def test_a_commands_file_is_light() -> None:
    """All commands import it, so it must not import what it is for."""
    found = extensions.extensions()
    assert "publish" in found
    text = Path(found["publish"].__file__).read_text(encoding="utf-8")
    assert not [
        line for line in text.splitlines() if line.startswith(("from .", "from components", "import components"))
    ]
