"""The command line started by torchrun as two processes on a tiny model: the answers of one process, given once."""

from __future__ import annotations

import json
import os
import random
import re
import subprocess
import sys
from pathlib import Path

import pandas
import pytest
from safetensors.torch import load_file

from intraslice.__main__ import main
from intraslice.cli import commands
from intraslice.cli.parser import parser
from intraslice.cli.run import Run
from intraslice.core.errors import UserError
from intraslice.distributed import rank

TORCHRUN = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "--standalone", "-m", "intraslice"]
SWEPT = ["--methods", "intraslice", "crossmodule", "--estimators", "pca", "--sparsities", "0.2", "0.4", "--no-speed"]
ALONE = ("generate", "inspect", "sensitivity", "tasks --tasks any", "benchmark")
ALONE += ("export --gguf f", "search --out f", "publish --out f")
BOTH_MODULES = ["--bias", "0.6", "--sparsity", "0.4"]  # left alone, the importances would spare this model's attention


@pytest.fixture(scope="module")
def home(tmp_path_factory, tiny_llama_mha, word_tokenizer) -> Path:
    """A tiny model with its text; one process and two keep their results apart."""
    home = tmp_path_factory.mktemp("processes")
    tiny_llama_mha().save_pretrained(home / "tiny")
    vocabulary = [f"w{index}" for index in range(4, 256)]
    word_tokenizer(vocabulary).save_pretrained(home / "tiny")
    draw = random.Random(0)
    (home / "text.txt").write_text("\n\n".join(" ".join(draw.choices(vocabulary, k=30)) for _ in range(60)))
    return home


@pytest.fixture
def words(home) -> list[str]:
    files = ["--model", str(home / "tiny"), "--calibration", str(home / "text.txt"), "--eval", str(home / "text.txt")]
    amounts = ["--sequences", "17", "--length", "24", "--eval-tokens", "120"]  # halves of neither are whole
    return [*files, *amounts, "--device", "cpu", "--dtype", "float32", "--json"]


@pytest.fixture
def answers(home, words, capsys, monkeypatch):
    """What one process answers, what two do, and what these say on stderr."""

    def both(command: str, *more: str) -> tuple[dict, dict, str]:
        monkeypatch.setenv("INTRASLICE_CACHE", str(home / "one"))
        assert main([command, *words, *more]) == 0
        one = json.loads(capsys.readouterr().out)
        environment = {**os.environ, "INTRASLICE_CACHE": str(home / "two"), "OMP_NUM_THREADS": "1"}
        line = [*TORCHRUN, command, *words, *more]
        result = subprocess.run(line, capture_output=True, text=True, env=environment, timeout=600, check=False)
        assert result.returncode == 0, result.stderr
        return one, json.loads(result.stdout), result.stderr  # one object, or it is no JSON

    return both


@pytest.fixture
def in_processes(words, together, monkeypatch, tmp_path):
    """What each of so many processes answers, in a folder of its own."""

    def run(count: int, command: str, *more: str) -> list[dict]:
        def work() -> dict:
            (folder := tmp_path / f"rank {rank()}").mkdir(exist_ok=True)
            monkeypatch.chdir(folder)
            arguments = parser().parse_args([command, *words, *more])
            return arguments.run(Run(arguments))[0]

        monkeypatch.setenv("INTRASLICE_CACHE", str(tmp_path / f"cache {count}"))
        return together(count, work)

    return run


def told(stderr: str, stage: str) -> set[str]:
    """How many steps a stage is said to have, by whoever says so."""
    return set(re.findall(rf"\b{stage} \d+/(\d+)", stderr))


def without(result: dict, *keys: str) -> dict:
    return {key: value for key, value in result.items() if key not in keys}


def assert_same_evaluation(one: dict, two: dict) -> None:
    perplexities = ("perplexity", "perplexity_error", "perplexity_ratio", "divergence")
    assert without(two, "seconds", "peak_rss_bytes", *perplexities) == without(
        one, "seconds", "peak_rss_bytes", *perplexities
    )
    assert min(two["ratios"][0]) > 0
    for name in ("dense", "sliced"):
        assert two["perplexity"][name] == pytest.approx(one["perplexity"][name], rel=1e-4)
        assert two["perplexity_error"][name] == pytest.approx(one["perplexity_error"][name], rel=1e-3)
    assert two["divergence"] == pytest.approx(one["divergence"], rel=1e-4)
    assert two["perplexity_ratio"]["standard_error"] == pytest.approx(one["perplexity_ratio"]["standard_error"], 1e-3)


def assert_shares(stderr: str) -> None:
    assert told(stderr, "perplexity sliced") == {"2"}  # of 5 windows
    assert stderr.count("model: ") == 1


def test_an_evaluation_in_two_processes_is_that_of_one(in_processes, capfd):
    (one,) = in_processes(1, "evaluate", *BOTH_MODULES)
    capfd.readouterr()
    for answer in in_processes(2, "evaluate", *BOTH_MODULES):
        assert_same_evaluation(one, answer)
    stderr = capfd.readouterr().err
    assert_shares(stderr)
    assert told(stderr, "calibrate") == {"8"}


@pytest.mark.slow
@pytest.mark.parametrize("order", ["one-shot", "sequential"])
def test_evaluate_by_torchrun_answers_as_one_process_does(answers, order):
    one, two, stderr = answers("evaluate", "--order", order, *BOTH_MODULES)
    assert_same_evaluation(one, two)
    assert told(stderr, "calibrate") <= {"8"}  # of 17 sequences; none where another test's calibration was found
    assert_shares(stderr)


def test_slice_is_written_once_with_the_same_plan(in_processes, tmp_path):
    found = []
    for count in (1, 2):
        folder = tmp_path / "folders" / f"{count}"
        first, *others = in_processes(count, "slice", *BOTH_MODULES, "--out", str(folder))
        assert others == [{}] * (count - 1)
        record = json.loads((folder / "intraslice.json").read_text())["record"]
        kept = [(layer["heads"], layer["dim"], layer["neurons"]) for layer in record["plan"]["layers"]]
        shapes = {name: weight.shape for name, weight in load_file(folder / "model.safetensors").items()}
        found.append((without(first, "seconds", "out", "bytes"), kept, shapes))
    assert found[0] == found[1]
    assert min(len(heads) * dim for heads, dim, _ in found[0][1]) < 56
    assert sorted(path.name for path in (tmp_path / "folders").iterdir()) == ["1", "2"]


@pytest.mark.slow
def test_sweep_has_the_rows_that_one_process_finds(answers, tmp_path):
    file = tmp_path / "rows.csv"
    one, two, stderr = answers("sweep", *SWEPT, "--csv", str(file))
    for ours, theirs in zip(two["rows"], one["rows"], strict=True):
        assert ours["perplexity"] == pytest.approx(theirs["perplexity"], rel=1e-4)
        assert ours["dense_perplexity"] == pytest.approx(theirs["dense_perplexity"], rel=1e-4)
        found = ("perplexity", "dense_perplexity", "seconds")
        assert without(ours, *found) == without(theirs, *found)
    assert pandas.read_csv(file)["seconds"].tolist() == [row["seconds"] for row in two["rows"]]
    assert told(stderr, "sweep") == {"2"}  # of 4 points


@pytest.mark.parametrize("options", ["ratios", "sweep --methods magnitude --sparsities 0.2 0.3 --no-speed"])
def test_rows_are_written_by_the_first_alone(in_processes, tmp_path, options):
    first, second = in_processes(2, *options.split(), "--csv", "rows.csv")
    assert without(first, "seconds") == without(second, "seconds")
    assert [path.parent.name for path in tmp_path.glob("rank */rows.csv")] == ["rank 0"]


@pytest.mark.parametrize(
    ("words", "what"),
    [
        *((words, words.split()[0]) for words in ALONE),
        ("evaluate --method intraslice+", "recovery distill"),
        ("ratios --recover distill-ce", "recovery distill-ce"),
        ("slice --iterative --out folder", "--iterative"),
        ("slice --order one-shot --stream --out folder", "--stream"),
        ("evaluate --ratios search", "--ratios search"),
        ("evaluate --method crossmodule", "crossmodule in the sequential order"),
        ("evaluate --method crossmodule --order one-shot", None),
        ("evaluate --method magnitude --iterative", None),
        ("sweep --methods intraslice+ --recover distill", None),
        ("paper --iterative", None),
        ("evaluate --sequences 1", "sequences must be at least 2, one for each process, got 1"),
    ],
)
def test_what_one_process_must_do_alone_is_refused_before_any_work(monkeypatch, words, what):
    monkeypatch.setattr("intraslice.cli.run.size", lambda: 2)
    arguments = parser().parse_args(words.split())
    if what is None:
        assert Run(arguments).seconds == {}
        return
    with pytest.raises(UserError) as caught:
        Run(arguments)
    assert str(caught.value).startswith(what)
    assert "one process" in str(caught.value) or "start fewer processes" in str(caught.value)


def test_a_slice_is_not_streamed_by_some_of_the_processes(monkeypatch):
    arguments = parser().parse_args(["slice", "--order", "one-shot", "--out", "folder"])
    monkeypatch.setattr(commands, "memory_is_short", lambda *_: True)
    run = Run(arguments)
    assert commands._should_stream(run)
    run.is_alone = False
    assert not commands._should_stream(run)
