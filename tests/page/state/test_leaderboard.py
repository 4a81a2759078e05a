"""The leaderboard and accuracies in tasks: what the page ships, what their command measures, and their charts."""

import math

import numpy
import pytest
from tiny_page import options_of

from components import make_leaderboard
from components.frame.handlers import memory
from components.state import leaderboard
from components.state.leaderboard import Cell, cells, measured, merged, read_rows, write
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
from intraslice.core.registry import ESTIMATORS
from intraslice.evaluation import sweep
from intraslice.evaluation.tasks import TasksConfig
from intraslice.methods.registry import METHODS
from intraslice.pretrained.sources import SUGGESTED_MODELS

CELL = Cell(
    *("default", "Q4_1", 106_202_880, "intraslice", "pca", "none", 32, 0, 0.3, "wikipedia"),
    *(15.3, 24.8, 1.62, 0.05, 0.59, 0.03, 0.3, 0.0, None, None, None, None, "2026-11-29", "abc1234"),
)
NAMED = ["--name", "default", "--weights", "random"]
TIMED = CELL._replace(prefill=1.3, decode=1.2, loops=0.2, answer_tokens=60.1)


def test_what_the_page_ships_is_complete_and_at_about_equal_parameters() -> None:
    assert measured("default")
    assert {cell.model for cell in cells()} <= set(SUGGESTED_MODELS)
    assert {cell.method for cell in cells()} <= set(METHODS)
    assert {cell.text for cell in cells()} == set(charts.TEXTS)
    assert len({tuple(getattr(cell, name) for name in leaderboard.KEY) for cell in cells()}) == len(cells())
    for cell in cells():
        assert cell.perplexity_ratio == pytest.approx(cell.perplexity / cell.dense_perplexity, rel=1e-3)
        tolerance = {"crossmodule": 0.01, "shortgpt": 0.02}.get(cell.method, 0.002)
        assert cell.removed == pytest.approx(cell.sparsity, abs=tolerance)
        assert 0 < cell.divergence_error < math.inf
        assert 0 < cell.perplexity_ratio_error < math.inf


def test_a_file_that_is_written_is_read_as_it_was(tmp_path) -> None:
    written = CELL, TIMED._replace(method="flap", ratios="", commit="1234567")
    write(written, tmp_path / "cells.csv")
    assert read_rows(Cell, tmp_path / "cells.csv") == written
    assert read_rows(Cell, tmp_path / "missing.csv") == ()


def test_a_cell_measured_anew_replaces_the_old_one_and_one_read_from_the_cache_keeps_its_commit() -> None:
    again = CELL._replace(commit="1111111")
    assert merged((CELL,), (again,)) == (CELL,)
    anew = again._replace(perplexity=25.0, date="2026-11-30")
    assert merged((CELL,), (anew,)) == (anew,)
    searched = CELL._replace(ratios=leaderboard.SEARCH)
    assert merged((CELL,), (searched,)) == (CELL, searched)
    longer, recovered = CELL._replace(samples=16), CELL._replace(recovery="distill")
    assert tuple(cell.stage for cell in (CELL, longer, searched, recovered)) == leaderboard.STAGES
    assert merged((TIMED,), (CELL,)) == (TIMED,)  # a run without speeds keeps those of the same slice
    assert merged((TIMED,), (anew,)) == (anew,)


@pytest.fixture
def command(tiny, tmp_path, monkeypatch):
    """Runs the command on a tiny model; returns the file's cells and the results of the library's commands."""
    for file in make_leaderboard.TEXTS.values():
        (tmp_path / file).write_text("\n".join(f"w{4 + step} w{9 + step} w{7 + step} " * 40 for step in range(40)))
    (tmp_path / "source.jsonl").write_text('{"text": "' + "w4 w5 w6 w7 w8 w9 " * 90 + '"}\n')
    for name, value in (("FILE", tmp_path / "cells.csv"), ("TOKENS", 64), ("DTYPE", "float32")):
        monkeypatch.setattr(make_leaderboard, name, value)
    here = [*options_of(tiny), "--device", "cpu", "--passes", "3"]
    run, results = make_leaderboard.run, []
    monkeypatch.setattr(make_leaderboard, "run", lambda words: results.append(run([*words, *here])) or results[-1])

    def call(*words: str) -> tuple[tuple[Cell, ...], list]:
        results.clear()
        make_leaderboard.main(
            ["--model", tiny.settings.model, *NAMED, "--texts", str(tmp_path), "--losses-only", *words]
        )
        return read_rows(Cell, tmp_path / "cells.csv"), list(results)

    yield call
    for name in [name for name in ESTIMATORS if ".json@" in name]:  # what a search found is registered
        del ESTIMATORS[name]


def test_the_command_measures_what_a_sweep_does(command, capsys, monkeypatch) -> None:
    words = ["--methods", "intraslice", "flap", "--sparsities", "0.3", "0.8", "--stages", "training-free"]
    written, results = command(*words)
    assert {(cell.method, cell.text) for cell in written if cell.sparsity == 0.3} == {
        (method, text) for method in ("flap", "intraslice") for text in charts.TEXTS
    }
    rows = {(row["method"], row["sparsity"]): row for result in results for row in result["rows"]}
    unreachable = [point for point, row in rows.items() if row["perplexity"] is None]
    assert unreachable
    said = capsys.readouterr().err
    for method, sparsity in unreachable:
        assert f"no cells of {method} at {sparsity}: {rows[method, sparsity]['note']}" in said
    for cell in written:
        suffix = "" if cell.text == "wikipedia" else f" {make_leaderboard.TEXTS[cell.text].partition('.')[0]}"
        row = rows[cell.method, cell.sparsity]
        found = [getattr(cell, column) for column in sweep.LOSSES]
        assert found == pytest.approx([row[f"{column}{suffix}"] for column in sweep.LOSSES], rel=1e-4)
        assert cell.parameters == row["dense_decoder"]
        assert (cell.removed, cell.date) == (pytest.approx(row["removed_fraction"], rel=1e-4), row["date"])
        assert (cell.passes, cell.prefill, cell.stage) == (0, None, "training-free")
    monkeypatch.setattr(sweep, "measure_losses", None)  # the second run reads the cache
    assert command(*words)[0] == written


def test_the_command_searches_recovers_and_calibrates_longer(command) -> None:
    words = ["--methods", "intraslice", "--sparsities", "0.3", "--stages"]
    written, results = command(*words, "searched", "recovered", "longer calibration")
    assert {(cell.stage, cell.ratios, cell.sequences, cell.samples, cell.text) for cell in written} == {
        (*stage, text)
        for stage in (
            ("searched", leaderboard.SEARCH, 128, 16),
            ("recovered", "pca", 32, 0),
            ("longer calibration", "pca", 128, 16),
        )
        for text in charts.TEXTS
    }
    search, _, recovery, _ = results
    passes = {cell.stage: cell.passes for cell in written}
    assert passes["searched"] == pytest.approx(4.5 * search["plans"][0]["passes"], rel=1e-4)
    assert passes["recovered"] == pytest.approx(recovery["rows"][0]["recovery_training_passes"], rel=1e-4)


def test_the_command_searches_for_modules_to_remove(command) -> None:
    written, (search, swept) = command("--methods", "shortgpt", "--sparsities", "0.5", "--stages", "searched")
    assert {(one.method, one.stage, one.sequences, one.samples) for one in written} == {("shortgpt", "searched", 32, 0)}
    assert all(cell.passes == pytest.approx(search["plans"][0]["passes"], rel=1e-4) for cell in written)
    (row,) = swept["rows"]
    assert row["removed_fraction"] == pytest.approx(0.5, abs=0.02)


def test_the_command_says_what_is_missing(command, capsys, tmp_path) -> None:
    (tmp_path / "lee.txt").unlink()
    with pytest.raises(SystemExit):
        command()
    assert f"lacks lee.txt; run `python -m tests.texts {tmp_path}`" in capsys.readouterr().err


@pytest.mark.parametrize("text", list(charts.TEXTS))
def test_both_charts_draw_every_cell_but_the_longer_calibrations_of_other_methods(text) -> None:
    on_text = [cell for cell in cells() if cell.text == text]
    of_model = [cell for cell in on_text if cell.model == "default"]
    in_table = [cell for cell in of_model if cell.stage == "longer calibration" and cell.method != "intraslice"]
    assert in_table
    for chart, hidden in ((charts.sparsity_chart(of_model), len(in_table)), (charts.size_chart(on_text), 0)):
        left = [trace for trace in chart.data if trace["yaxis"] == "y"]
        assert sum(len(trace["x"]) for trace in left) == len(chart.rows) - hidden
    assert all(panel.show("default", text).values())
    assert not any(panel.show("someone/else", "no text").values())


def test_stages_and_estimators_of_a_method_differ_and_digits_are_as_many_as_the_error_allows() -> None:
    changes = {"samples": 16}, {"ratios": leaderboard.SEARCH}, {"recovery": "distill"}
    traces = charts.sparsity_chart([CELL, *(CELL._replace(**change) for change in changes)]).data[:4]
    assert len({trace["line"]["dash"] for trace in traces}) == 4
    assert len({trace["marker"]["symbol"].removesuffix("-dot") for trace in traces}) == 4
    other = CELL._replace(ratios="output-error", divergence=0.5)
    shown = [CELL, other, CELL._replace(sparsity=0.2), other._replace(sparsity=0.2)]
    traces = charts.sparsity_chart(shown).data[:2]
    assert [(trace["name"], trace["x"]) for trace in traces] == [
        ("IntraSlice", [0.2, 0.3]),
        ("IntraSlice (Output error)", [0.2, 0.3]),
    ]
    assert len({trace["marker"]["symbol"] for trace in traces}) == len({trace["legendgroup"] for trace in traces}) == 2
    assert [len(trace["x"]) for trace in charts.size_chart(shown).data] == [1, 1]
    errors = {"perplexity_ratio_error": 292.74, "divergence_error": 0.0037}
    row = charts.sparsity_chart([CELL._replace(perplexity_ratio=1479.10, commit="b-dirty", **errors)]).rows[0]
    assert row[4:6] == ["1,480 ± 290", "0.5900 ± 0.0037"]
    assert row[-1].replace(charts.NO_BREAK, "-") == "2026-11-29"


def test_the_model_list_says_what_slicing_costs_a_measured_model(session) -> None:
    of_model = [cell for cell in cells() if cell.model == (model := "Qwen/Qwen2.5-Coder-0.5B-Instruct")]
    wanted = "intraslice", "training-free", "wikipedia", 0.3
    (cell,) = (cell for cell in of_model if (cell.method, cell.stage, cell.text, cell.sparsity) == wanted)
    assert f"from {cell.dense_perplexity:.1f} to {cell.perplexity:.1f}." in memory(session, model)
    assert measured("default")  # the headline has it, on other windows
    assert "Measured" not in memory(session, "default")


def test_the_scores_that_the_page_ships_follow_from_their_hits() -> None:
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
def score_command(tiny, tmp_path, monkeypatch):
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
        make_leaderboard.main(["--model", tiny.settings.model, *NAMED, "--questions", str(tmp_path), *words])
        return read_rows(Score, file), list(asked)

    return call


def test_the_command_measures_what_is_missing_and_pairs_it_with_the_dense_model(score_command) -> None:
    words = ["--stages", "training-free", "--sparsities", "0.3", "--methods", "flap", "intraslice", "--tasks"]
    first, asked = score_command(*words, "piqa", "winogrande")
    assert asked == [("local_piqa", "local_winogrande")] * 3
    slices = ("dense", ""), ("flap", ""), ("intraslice", "pca")
    assert {row[2:4] for row in first} == set(slices)
    rows, asked = score_command(*words, "hellaswag", "piqa")
    assert asked == [("local_hellaswag",)] * 3
    assert set(first) < set(rows)
    assert len(rows) == 9
    assert score_command(*words, "piqa") == (rows, [])
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
