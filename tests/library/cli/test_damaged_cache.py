"""Damage to any file of the cache: the next run gives the same numbers, or one line that says what is wrong."""

import json
import random
import shutil
from pathlib import Path

import pytest

from intraslice.__main__ import main

COMMANDS = [
    "evaluate --order one-shot --sparsity 0.3",
    "sweep --methods intraslice --estimators pca --sparsities 0.2 --no-speed",
    "sensitivity --ratio 0.5",
]
CHANGING = {"seconds", "peak_rss_bytes"}


def numbers(answer: object) -> object:
    """An answer without its times and memory."""
    if isinstance(answer, dict):
        return {key: numbers(value) for key, value in answer.items() if key not in CHANGING}
    return [numbers(value) for value in answer] if isinstance(answer, list) else answer


def damage(file: Path, dice: random.Random) -> str:
    """Flip a bit of a file, cut it, or empty it."""
    content = bytearray(file.read_bytes())
    way = dice.choice(("flip", "flip", "flip", "cut", "empty"))
    if way == "flip" and content:
        place = dice.randrange(min(len(content), dice.choice((200, len(content)))))
        content[place] ^= 1 << dice.randrange(8)
    else:
        content = content[: dice.randrange(len(content) + 1)] if way == "cut" else bytearray()
    file.write_bytes(content)
    return f"{way} {file.name}"


@pytest.mark.parametrize("times", [3, pytest.param(280, marks=pytest.mark.slow)])
def test_a_damaged_file_of_the_cache_heals(times, words, own_cache, tmp_path, capsys) -> None:
    def answers() -> list[object]:
        """Numbers of each command, or what stands on stderr."""
        found = []
        for line in COMMANDS:
            command, *more = line.split()
            status, printed = main([command, *words, "--json", *more]), capsys.readouterr()
            found.append(numbers(json.loads(printed.out)) if status == 0 else printed.err.strip())
        return found

    expected = answers()
    assert all(isinstance(answer, dict) for answer in expected), expected
    shutil.copytree(own_cache, tmp_path / "whole")
    dice = random.Random(times)
    for _ in range(times):
        shutil.rmtree(own_cache)
        shutil.copytree(tmp_path / "whole", own_cache)
        files = sorted(file for file in own_cache.rglob("*") if file.is_file() and file.name != ".lock")
        what = damage(dice.choice(files), dice)
        for answer, whole in zip(answers(), expected, strict=True):
            assert answer == whole or (isinstance(answer, str) and len(answer.splitlines()) == 1), (what, answer)
        assert answers() == expected, what
