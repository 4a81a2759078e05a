"""Recovery and answers on the command line."""

from __future__ import annotations

import pytest


@pytest.fixture(autouse=True)
def cache(tmp_path_factory, monkeypatch):
    monkeypatch.setenv("INTRASLICE_CACHE", str(tmp_path_factory.getbasetemp() / "commands-cache"))


def test_intraslice_plus_is_one_shot_slicing_with_distillation(run):
    alias, spelt = (
        run("evaluate", "--method", "intraslice+"),
        run("evaluate", "--order", "one-shot", "--recover", "distill"),
    )
    assert spelt.pop("recovery") == "distill"
    for timed in ("seconds", "peak_rss_bytes", "method", "order"):
        alias.pop(timed), spelt.pop(timed)
    assert alias == spelt


def test_a_recovery_follows_any_method(run):
    values = [run("evaluate", "--method", "flap", *more)["perplexity"] for more in ((), ("--recover", "distill"))]
    assert values[0]["dense"] == values[1]["dense"]
    assert values[0]["sliced"] != values[1]["sliced"]
    (row,) = run("sweep", "--methods", "flap", "--sparsities", "0.3", "--no-speed", "--recover", "distill")["rows"]
    assert row["recovery"] == "distill"
    assert row["perplexity"] == values[1]["sliced"]
    assert 2 < row["recovery_training_passes"] < 30


def test_answers_are_judged_behind_an_option(run):
    judged = run("evaluate", "--answers")["answers"]
    (row,) = run(
        "sweep", "--methods", "intraslice", "--estimators", "pca", "--sparsities", "0.3", "--no-speed", "--answers"
    )["rows"]
    assert {name: row[name] for name in judged["sliced"]} == judged["sliced"]
    assert row["dense_loops"] == judged["dense"]["loops"]
    assert "answers" not in run("evaluate")
