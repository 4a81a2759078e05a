"""The command line on a tiny model, in this process."""

import json
import shlex
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tiny_models import WORDS, write_words

from intraslice import CalibrationConfig, EvaluationConfig
from intraslice.__main__ import main

OPTIONS = "--model tiny --calibration text.txt --eval text.txt --sequences 16 --length 24 --eval-tokens 96 --device cpu"
Run = Callable[..., dict[str, Any]]


@pytest.fixture(scope="session")
def template(tmp_path_factory, tiny_llama_gqa, word_tokenizer) -> Path:
    folder = tmp_path_factory.mktemp("commands")
    tiny_llama_gqa().save_pretrained(folder / "tiny")
    word_tokenizer(WORDS).save_pretrained(folder / "tiny")
    write_words(folder / "text.txt")
    return folder


@pytest.fixture(scope="session")
def texts(template) -> dict[str, Any]:
    """The texts of `OPTIONS` for `compress`, which prints nothing."""
    text = str(template / "text.txt")
    configs = {"calibration": CalibrationConfig(text, 16, 24), "evaluation": EvaluationConfig(text, 96, 24)}
    return configs | {"progress": False}


@pytest.fixture(scope="session")
def options(texts) -> dict[str, Any]:
    return texts | {"order": "one-shot", "dtype": "float32", "device": "cpu"}


@pytest.fixture
def home(template, tmp_path, tmp_path_factory, monkeypatch, own_estimators) -> Path:
    """The working directory, a copy of the template."""
    shutil.copytree(template, tmp_path, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("INTRASLICE_CACHE", str(tmp_path_factory.getbasetemp() / "commands-cache"))
    return tmp_path


@pytest.fixture
def words(home) -> list[str]:
    """Options that every command takes: the tiny model, its text, few tokens."""
    return [*OPTIONS.split(), "--dtype", "float32"]


@pytest.fixture
def run(printed) -> Run:
    """The JSON result of a command, by its line."""

    def no_number(name: str) -> None:
        pytest.fail(f"{name} is no JSON")

    return lambda line: json.loads(printed(f"{line} --json"), parse_constant=no_number)


@pytest.fixture
def error_of(words, capsys) -> Callable[[str], str]:
    """The last line on stderr of a command that must end with code 2, and print nothing."""

    def answer(line: str) -> str:
        command, *more = shlex.split(line)
        try:
            code = main([command, *words, "--json", *more])
        except SystemExit as left:  # by argparse
            code = left.code
        captured = capsys.readouterr()
        lines = captured.err.splitlines()
        assert (code, captured.out) == (2, "")
        assert len([line for line in lines if line.startswith("python -m intraslice")]) == 1
        return lines[-1]

    return answer


@pytest.fixture
def printed(words, capsys) -> Callable[[str], str]:
    def answer(line: str) -> str:
        command, *more = line.split()
        assert main([command, *words, *more]) == 0
        return capsys.readouterr().out

    return answer
