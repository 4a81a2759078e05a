"""The command that asks lm-eval, on a tiny model and a task over a local file."""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
from pathlib import Path

import pytest
from harness import CHOICE

from intraslice.__main__ import main

TASK = CHOICE + "metric_list: [{{metric: acc}}]\n"
ROOT = Path(__file__).parents[3]


@pytest.fixture
def home(tmp_path, tiny_llama_gqa, word_tokenizer, monkeypatch) -> Path:
    """A folder with a tiny model, its text, and a task; the working directory."""
    vocabulary = [f"w{index}" for index in range(4, 256)]
    tiny_llama_gqa().save_pretrained(tmp_path / "tiny")
    word_tokenizer(vocabulary).save_pretrained(tmp_path / "tiny")
    draw = random.Random(0)
    text = "\n\n".join(" ".join(draw.choices(vocabulary, k=30)) for _ in range(60))
    (tmp_path / "text.txt").write_text(text)
    rows = [
        {
            "question": " ".join(draw.choices(vocabulary, k=5)),
            "choices": draw.sample(vocabulary, 3),
            "answer": index % 3,
        }
        for index in range(20)
    ]
    (tmp_path / "questions.json").write_text("\n".join(map(json.dumps, rows)))
    (tmp_path / "tasks").mkdir()
    (tmp_path / "tasks" / "which.yaml").write_text(TASK.format(name="which", file=tmp_path / "questions.json"))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("INTRASLICE_CACHE", str(tmp_path / "cache"))
    return tmp_path


WORDS = ["--model", "tiny", "--calibration", "text.txt", "--eval", "text.txt", "--sequences", "16", "--length", "24"]
WORDS += ["--eval-tokens", "96", "--device", "cpu", "--dtype", "float32"]
ASKED = ["--tasks", "which", "--include-path", "tasks"]


def test_dense_and_slices_stand_side_by_side(home, harness, capsys):
    assert main(["tasks", *WORDS, *ASKED, "--json"]) == 0
    result = json.loads(capsys.readouterr().out, parse_constant=lambda name: pytest.fail(f"{name} is no JSON"))
    assert set(result) == {"model", "rows", "removed_fraction", "protocol", "seconds"}
    assert [row["model"] for row in result["rows"]] == ["dense", "intraslice", "crossmodule"]
    assert all(row["task"] == "which" and row["metric"] == "acc" for row in result["rows"])
    assert all(0 <= row["value"] <= 1 and row["standard_error"] > 0 for row in result["rows"])
    assert result["removed_fraction"] == pytest.approx({"intraslice": 0.3, "crossmodule": 0.3}, abs=0.12)
    assert {"lm_eval", "limit", "num_fewshot", "calibration"} <= result["protocol"].keys()
    assert main(["tasks", *WORDS, *ASKED, "--methods", "wanda", "--limit", "5"]) == 0
    head, row = capsys.readouterr().out.splitlines()
    assert head.split() == ["task", "metric", "dense", "wanda"]
    assert row.split()[:2] == ["which", "acc"]
    assert row.count("±") == 2


def test_a_sliced_folder_is_asked_alone_and_scores_as_in_memory(home, harness, capsys):
    assert main(["slice", *WORDS, "--out", "sliced"]) == 0
    assert main(["tasks", *WORDS, *ASKED, "--methods", "intraslice", "--json"]) == 0
    in_memory = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert main(["tasks", *WORDS, *ASKED, "--model", "sliced", "--json"]) == 0
    reopened = json.loads(capsys.readouterr().out)
    assert [row["model"] for row in reopened["rows"]] == ["sliced"]
    assert reopened["rows"][0]["value"] == in_memory["rows"][1]["value"]
    assert reopened["removed_fraction"]["sliced"] == pytest.approx(in_memory["removed_fraction"]["intraslice"])


BY_ITS_OWN_COMMAND = """
import sys
from functools import partial
import lm_eval._cli.run, lm_eval.tasks
lm_eval.tasks.TaskManager = partial(lm_eval.tasks.TaskManager, include_defaults=False)
from lm_eval.__main__ import cli_evaluate
sys.argv[0] = "lm_eval"
cli_evaluate()
"""


def test_the_command_of_lm_eval_reads_a_sliced_folder(home, harness, capsys):
    assert main(["slice", *WORDS, "--out", "sliced"]) == 0
    assert main(["tasks", *WORDS, *ASKED, "--model", "sliced", "--json"]) == 0
    (row,) = json.loads(capsys.readouterr().out.splitlines()[-1])["rows"]
    words = ["--model", "hf", "--model_args", "pretrained=sliced,trust_remote_code=True,dtype=float32"]
    words += ["--device", "cpu", "--tasks", "which", "--include_path", "tasks", "--output_path", "out.json"]
    places = {"PYTHONPATH": os.pathsep.join([str(ROOT), *sys.path]), "HF_HOME": str(home)}
    command = [sys.executable, "-c", BY_ITS_OWN_COMMAND, *words]
    run = subprocess.run(command, capture_output=True, text=True, env=os.environ | places, timeout=600)
    assert run.returncode == 0, run.stderr[-2000:]
    (file,) = home.glob("out*.json")
    assert json.loads(file.read_text())["results"]["which"]["acc,none"] == row["value"]


@pytest.mark.parametrize(
    ("wrong", "named"), [(["--limit", "0"], "limit"), (["--include-path", "nowhere"], "nowhere is not a folder")]
)
def test_bad_input_is_one_line_and_two(home, harness, wrong, named, capsys):
    assert main(["tasks", *WORDS, *ASKED, *wrong]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert named in captured.err
    assert len(captured.err.splitlines()) == 1


def test_without_lm_eval_it_says_what_to_install(home, monkeypatch, capsys):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert main(["tasks", *WORDS, *ASKED]) == 2
    assert 'pip install "lm-eval[hf]"' in capsys.readouterr().err
