"""The command `sweep` on a tiny model: its rows, its file, and the spread over seeds."""

from __future__ import annotations

import statistics

import pandas
import pytest

from intraslice.__main__ import main


def test_sweep_writes_the_rows_it_prints(run, words, tmp_path):
    file, text = tmp_path / "rows.csv", words[words.index("--eval") + 1]
    chosen = ["--methods", "intraslice", "crossmodule", "--estimators", "pca", "uniform", "--sparsities", "0.2", "0.3"]
    result = run("sweep", *chosen, "--no-speed", "--csv", str(file), "--also-eval", text)
    assert len(result["rows"]) == 6
    frame, found = pandas.read_csv(file), [row["perplexity"] for row in result["rows"]]
    assert frame["perplexity"].tolist() == frame["perplexity text"].tolist() == pytest.approx(found)


def test_a_sweep_over_seeds_has_the_rows_of_each_and_their_spread(run, words, capsys):
    chosen = ["--methods", "intraslice", "wanda", "--estimators", "pca", "--sparsities", "0.3", "--no-speed"]
    result = run("sweep", *chosen, "--seeds", "0", "1")
    assert result["protocol"]["seed"] == [0, 1]
    rows = result["rows"]
    assert [row["seed"] for row in rows] == [0, 0, 1, 1]
    single = run("sweep", *chosen, "--seed", "1")["rows"]
    assert [row["perplexity"] for row in rows[2:]] == [row["perplexity"] for row in single]
    assert "seed" not in single[0]
    assert main(["sweep", *[word for word in words if word != "--json"], *chosen, "--seeds", "0", "1"]) == 0
    header, first, second = (line.split() for line in capsys.readouterr().out.strip().splitlines())
    assert (first[:2], second[:2]) == (["intraslice", "pca"], ["wanda", "0.3"])  # which uses no estimator
    table = dict(zip(header, first, strict=False))
    for name in ("perplexity", "divergence"):
        both = [rows[0][name], rows[2][name]]
        assert float(table[name]) == pytest.approx(statistics.mean(both), rel=1e-2)
        assert float(table[f"{name}_sd"]) == pytest.approx(statistics.stdev(both), abs=1e-3)
