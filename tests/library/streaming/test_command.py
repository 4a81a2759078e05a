"""`slice --stream`, and by itself where memory is short."""

from __future__ import annotations

import json

import pytest

from intraslice.__main__ import main
from intraslice.pretrained.memory import MEMORY_VARIABLE


@pytest.fixture
def words(tiny_case, recipe_for, folder):
    recipe = recipe_for(tiny_case("llama-gqa"))
    text = recipe.calibration.text
    options = ["--model", recipe.model, "--calibration", text, "--eval", text, "--sequences", "6", "--length", "24"]
    return ["slice", *options, "--dtype", "float32", "--device", "cpu", "--json", "--out", str(folder)]


def test_a_streamed_slice_tells_its_needs_before_and_its_result_after(words, folder, capsys):
    assert main([*words, "--stream", "--order", "one-shot"]) == 0
    captured = capsys.readouterr()
    assert captured.err.startswith("estimate: ")
    result = json.loads(captured.out)
    assert result["estimate"].keys() == {"memory_bytes", "disk_bytes", "seconds"}
    assert result["bytes"] == sum(file.stat().st_size for file in folder.iterdir())
    assert result["removed_fraction"] == pytest.approx(0.3, abs=0.05)


def test_a_slice_is_streamed_by_itself_where_memory_is_short(words, capsys, monkeypatch):
    monkeypatch.setenv(MEMORY_VARIABLE, "1")
    assert main([*words, "--order", "one-shot"]) == 0
    assert "estimate" in json.loads(capsys.readouterr().out)


def test_a_search_is_not_dropped_where_memory_is_short(words, capsys, monkeypatch):
    monkeypatch.setenv(MEMORY_VARIABLE, "1")
    assert main([*words, "--order", "one-shot", "--ratios", "search"]) == 2
    assert "is free" in capsys.readouterr().err


def test_what_cannot_be_streamed_is_an_error_of_one_line(words, capsys):
    for more, reason in (
        ([], "use --order one-shot"),
        (["--order", "one-shot", "--method", "wanda"], "use --method intraslice"),
        (["--order", "one-shot", "--samples", "2"], "leave samples out"),
        (["--order", "one-shot", "--ratios", "search"], "--ratios search measures whole models"),
        (["--order", "one-shot", "--device-map", "disk"], "--stream requires --out FOLDER"),
    ):
        assert main([*words, "--stream", *more]) == 2
        assert reason in capsys.readouterr().err
