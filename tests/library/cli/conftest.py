"""The command line on a tiny model, in this process."""

import json
import random
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from intraslice.__main__ import main
from intraslice.core.registry import ESTIMATORS

WORDS = "--model tiny --calibration text.txt --eval text.txt --sequences 16 --length 24 --eval-tokens 96 --device cpu"
Run = Callable[..., dict[str, Any]]


@pytest.fixture(scope="session")
def template(tmp_path_factory, tiny_llama_gqa, word_tokenizer) -> Path:
    folder = tmp_path_factory.mktemp("commands")
    vocabulary = [f"w{index}" for index in range(4, 256)]
    tiny_llama_gqa().save_pretrained(folder / "tiny")
    word_tokenizer(vocabulary).save_pretrained(folder / "tiny")
    draw = random.Random(0)
    (folder / "text.txt").write_text("\n\n".join(" ".join(draw.choices(vocabulary, k=30)) for _ in range(60)))
    return folder


@pytest.fixture
def home(template, tmp_path, tmp_path_factory, monkeypatch) -> Iterator[Path]:
    """The working directory, a copy of the template; estimators that a test registers are removed after it."""
    shutil.copytree(template, tmp_path, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("INTRASLICE_CACHE", str(tmp_path_factory.getbasetemp() / "commands-cache"))
    registered = dict(ESTIMATORS)
    yield tmp_path
    for name in ESTIMATORS.keys() - registered:
        del ESTIMATORS[name]


@pytest.fixture
def words(home) -> list[str]:
    """Options that every command takes: the tiny model, its text, few tokens."""
    return [*WORDS.split(), "--dtype", "float32"]


@pytest.fixture
def run(words, capsys) -> Run:
    """The JSON result of a command, by its line."""

    def answer(line: str) -> dict[str, Any]:
        command, *more = line.split()
        assert main([command, *words, "--json", *more]) == 0
        return json.loads(capsys.readouterr().out, parse_constant=lambda name: pytest.fail(f"{name} is no JSON"))

    return answer


@pytest.fixture
def printed(words, capsys) -> Callable[[str], str]:
    def answer(line: str) -> str:
        command, *more = line.split()
        assert main([command, *words, *more]) == 0
        return capsys.readouterr().out

    return answer
