"""The command line on a tiny model."""

from __future__ import annotations

import json
import random

import pytest

from intraslice.__main__ import main


@pytest.fixture(scope="module")
def words(tmp_path_factory, tiny_llama_gqa, word_tokenizer) -> list[str]:
    """Options that every command takes: a tiny model, its text, few tokens."""
    home = tmp_path_factory.mktemp("commands")
    tiny_llama_gqa().save_pretrained(home / "tiny")
    vocabulary = [f"w{index}" for index in range(4, 256)]
    word_tokenizer(vocabulary).save_pretrained(home / "tiny")
    draw = random.Random(0)
    text = "\n\n".join(" ".join(draw.choices(vocabulary, k=30)) for _ in range(60))
    (home / "text.txt").write_text(text)
    options = ["--model", "tiny", "--calibration", "text.txt", "--eval", "text.txt"]
    options = [str(home / word) if not word.startswith("--") else word for word in options]
    numbers = "--sequences 16 --length 24 --eval-tokens 96 --device cpu --dtype float32"
    return [*options, *numbers.split(), "--json"]


@pytest.fixture
def run(words, capsys):
    def answer(command: str, *more: str) -> dict:
        assert main([command, *words, *more]) == 0
        return json.loads(capsys.readouterr().out, parse_constant=lambda name: pytest.fail(f"{name} is no JSON"))

    return answer
