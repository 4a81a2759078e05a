"""Accuracies in tasks: the file, its command, and the leaderboard's chart."""

from __future__ import annotations

import math

import numpy
import pytest
from tiny_page import options_of

from components import make_leaderboard
from components.state import leaderboard
from components.state.leaderboard import read_rows
from components.state.task_scores import (
    DENSE,
    Score,
    comparable,
    mean_accuracy,
    mean_difference,
    scored,
    scores,
    slice_of,
)
from components.sweep.leaderboard import charts, panel
from intraslice.evaluation.tasks import TasksConfig


def test_what_the_page_ships_follows_from_its_hits() -> None:
    rows = scores()
    assert len({(row.model, slice_of(row), row.task) for row in rows}) == len(rows) > 0
    cells = {(cell.model, slice_of(cell)): cell for cell in leaderboard.cells()}
    dense = {(row.model, row.task): row.decisive for row in rows if row.method == DENSE}
    for row in rows:
        hits = {"accuracy": row._replace(normalised_hits="").decisive}
        hits |= {"normalised": row.decisive} if row.normalised_hits else {}
        for name, bits in hits.items():
            mean = bits.mean()
            error = math.sqrt(mean * (1 - mean) / (row.questions - 1))
            assert (getattr(row, name), getattr(row, f"{name}_error")) == pytest.approx((mean, error), rel=1e-4)
        change = row.decisive - dense[row.model, row.task]
        error = change.std(ddof=1) / math.sqrt(len(change))
        assert (row.difference, row.difference_error) == pytest.approx((change.mean(), error), rel=1e-4, abs=1e-9)
        if row.method != DENSE:
            assert row.removed == pytest.approx(cells[row.model, slice_of(row)].removed, rel=1e-3)


@pytest.fixture
def command(tiny, tmp_path, monkeypatch):
    """Runs the command on a tiny model; returns the file's rows, and the tasks of every model that was measured."""
    asked: list[tuple[str, ...]] = []

    def measure_hits(model, tokenizer, config: TasksConfig, *_) -> dict[str, dict[str, list[bool]]]:
        asked.append(config.tasks)
        drawn = numpy.random.default_rng(len(asked)).random(37) < 0.4
        metrics = {"local_winogrande": ["acc"]}
        return {task: dict.fromkeys(metrics.get(task, ["acc", "acc_norm"]), drawn.tolist()) for task in config.tasks}

    here = [*options_of(tiny), "--device", "cpu"]
    commands = make_leaderboard.commands
    file = tmp_path / "tasks.csv"
    for name, value in (
        ("SCORES", file),
        ("DTYPE", "float32"),
        ("TOKENS", 64),
        ("commands", lambda *of: (lambda words, *rest: ([*words, *here], *rest))(*commands(*of))),
        ("require_tasks", lambda config: None),
        ("measure_hits", measure_hits),
    ):
        monkeypatch.setattr(make_leaderboard, name, value)

    def call(*words: str) -> tuple[tuple[Score, ...], list[tuple[str, ...]]]:
        asked.clear()
        of_model = ["--model", tiny.settings.model, "--name", "default", "--weights", "random"]
        make_leaderboard.main([*of_model, "--questions", str(tmp_path), *words])
        return read_rows(Score, file), list(asked)

    return call


def test_the_command_measures_what_is_missing_and_pairs_it_with_the_dense_model(command) -> None:
    words = ["--stages", "training-free", "--sparsities", "0.3", "--methods", "flap", "intraslice", "--tasks"]
    first, asked = command(*words, "piqa", "winogrande")
    assert asked == [("local_piqa", "local_winogrande")] * 3
    slices = ("dense", ""), ("flap", ""), ("intraslice", "pca")
    assert {row[2:4] for row in first} == set(slices)
    rows, asked = command(*words, "hellaswag", "piqa")
    assert asked == [("local_hellaswag",)] * 3
    assert set(first) < set(rows)
    assert len(rows) == 9
    assert command(*words, "piqa") == (rows, [])
    dense = {row.task: row.decisive for row in rows if row.method == DENSE}
    for row in rows:
        assert (row.normalised is None) == (row.task == "winogrande")
        assert row.difference == pytest.approx((row.decisive - dense[row.task]).mean(), abs=1e-5)
        assert (row.removed > 0) == (row.method != DENSE)
    assert len({row.difference for row in rows}) == 3


def test_means_over_tasks_are_paired_and_over_the_tasks_that_all_have() -> None:
    def score(method: str, task: str, hits: str) -> Score:
        columns = {"model": "m", "method": method, "task": task}
        return scored({"acc": [hit == "1" for hit in hits]}, None, columns)

    hits = {"piqa": "1110", "arc_easy": "1" * 9 + "0", "winogrande": "10"}
    dense = [score("dense", *one) for one in hits.items()]
    other = [score("flap", "arc_easy", "1" * 8 + "00"), score("flap", "piqa", "1010")]
    groups = comparable([*dense, *other, score("flap", "hellaswag", "10")._replace(model="n")], "m")
    assert [[row.task for row in rows] for rows in groups.values()] == [["piqa", "arc_easy"], ["arc_easy", "piqa"]]
    # One question of n is missed, or lost: the standard deviation is 1 / sqrt(n).
    errors = math.hypot(1 / 4, 1 / 10) / 2
    assert mean_accuracy(dense[:2]) == pytest.approx(((0.75 + 0.9) / 2, errors))
    assert mean_difference(other, dense) == pytest.approx((-(1 / 4 + 1 / 10) / 2, errors))


def test_the_chart_draws_every_slice_at_its_mean_accuracy_and_the_dense_model_as_a_line() -> None:
    groups = comparable(scores(), "default")
    cells = [cell for cell in leaderboard.cells() if (cell.model, cell.text) == ("default", "news")]
    chart = charts.accuracy_chart(cells, groups)
    assert len(chart.rows) == len(groups) - 1 > 0
    shown = [cell for cell in cells if slice_of(cell) in groups]
    for axis, column in (("y", "sparsity"), ("y2", "divergence")):
        traces = [trace for trace in chart.data if trace["yaxis"] == axis]
        drawn = sorted(point for trace in traces for point in zip(trace["x"], trace["y"], strict=True))
        expected = sorted((getattr(cell, column), mean_accuracy(groups[slice_of(cell)])[0]) for cell in shown)
        assert numpy.array(drawn) == pytest.approx(numpy.array(expected), rel=1e-4)
    dense = next(rows for key, rows in groups.items() if key[0] == DENSE)
    assert [shape["y0"] for shape in chart.layout["shapes"]] == [mean_accuracy(dense)[0]] * 2
    assert charts.accuracy_chart(cells, {}) is None
    assert panel.show("default", "news")["by_accuracy"] == chart.to_json()


def test_ours_and_the_two_nearest_rivals_are_in_colour() -> None:
    cells = [cell for cell in leaderboard.cells() if (cell.model, cell.text) == ("default", "wikipedia")]
    data = charts.sparsity_chart(cells).data
    gray = {trace["legendgroup"] for trace in data if trace.get("meta") == {"gray": True}}
    untrained = [cell for cell in cells if (cell.sparsity, cell.stage, cell.ratios) == (0.3, "training-free", "")]
    nearest = [cell.method for cell in sorted(untrained, key=lambda cell: cell.divergence)[:2]]
    coloured = {trace["legendgroup"] for trace in data} - gray
    assert coloured == {f"{method} training-free " for method in ("intraslice", *nearest)}
    assert len(gray) > 8
