"""Several processes together find what one finds alone, answer once, and none waits for one that stopped."""

import json
import os
import re
import subprocess
import sys
import time
from dataclasses import replace
from datetime import timedelta
from itertools import chain
from pathlib import Path

import pytest
import torch
from forked import FORK
from refusing import refused
from safetensors.torch import load_file
from tiny_models import FAMILIES, WORDS, write_words
from torch import Tensor
from torch import distributed as torch_distributed
from torch.testing import assert_close

from intraslice import distributed
from intraslice.__main__ import main
from intraslice.calibration import driver
from intraslice.calibration.driver import calibrate
from intraslice.calibration.stats import CalibrationStats
from intraslice.cli import commands
from intraslice.cli.parser import parser
from intraslice.cli.run import Run
from intraslice.core.errors import UserError
from intraslice.core.progress import Progress
from intraslice.distributed import all_gather, all_reduce_, process_group, rank, shard_of, single_process, size
from intraslice.evaluation.perplexity import measure_losses
from intraslice.evaluation.sweep import Texts, points, sweep
from intraslice.modeling import hidden_states
from intraslice.modeling.families import blocks
from intraslice.modeling.offload import offload_
from intraslice.slicing import sequential

pytestmark = pytest.mark.usefixtures("own_cache")  # nothing is found that another test kept


def test_outside_a_group_of_torchrun_a_process_has_all_the_work(monkeypatch):
    monkeypatch.setattr(torch_distributed, "get_world_size", lambda: 2)  # the caller's own group shares nothing
    rows = torch.arange(3.0)
    all_reduce_(rows)
    with process_group("cpu"):
        assert (size(), rank(), shard_of(7), all_gather([4, 5])) == (1, 0, slice(0, 7), [4, 5])
    assert rows.tolist() == [0, 1, 2]


@pytest.mark.parametrize(("count", "unit"), [(0, 1), (2, 1), (5, 1), (16, 1), (17, 4), (13, 4), (12, 4), (3, 512)])
@pytest.mark.parametrize("processes", [1, 2, 3, 4])
def test_shares_in_order_are_all_there_is(count, unit, processes, monkeypatch):
    monkeypatch.setattr(distributed, "size", lambda: processes)
    shares = []
    for turn in range(processes):
        monkeypatch.setattr(distributed, "rank", lambda turn=turn: turn)
        shares.append(list(range(count))[shard_of(count, unit)])
    assert list(chain(*shares)) == list(range(count))
    filled = [share for share in shares if share]
    assert len(filled) == min(processes, count)
    assert max(map(len, filled), default=0) - min(map(len, filled), default=0) <= 2 * unit - 1
    if -(-count // unit) >= processes:
        assert all(share[0] % unit == 0 for share in filled)


def test_three_processes_add_and_gather_alike_and_the_first_alone_speaks(together, capfd):
    def work() -> list:
        moments = [torch.full((2, 2), 10.0 ** rank(), dtype=torch.float64), torch.empty(0, 0), torch.ones(3) * rank()]
        all_reduce_(*moments)
        print("said", flush=True)
        with single_process():
            all_reduce_(own := torch.ones(1))
            alone = size(), rank(), all_gather([1]), own.item()
        return [[m.flatten().tolist() for m in moments], all_gather([(rank(), row) for row in range(rank())]), alone]

    assert together(3, work) == 3 * [[[[111.0] * 4, [], [3.0] * 3], [(1, 0), (2, 0), (2, 1)], (1, 0, [1], 1.0)]]
    assert capfd.readouterr().out == "said\n"


@pytest.mark.parametrize("culprit", [0, 1])
@pytest.mark.parametrize("waits_in", ["gather", "reduce", "the end"])
def test_nobody_waits_for_one_that_stopped(together, culprit, waits_in):
    def work() -> None:
        all_gather([])  # all have met
        if rank() == culprit:
            time.sleep(0.2)
            raise UserError("no such text")
        if waits_in == "gather":
            all_gather([rank()])
        elif waits_in == "reduce":
            all_reduce_(torch.ones(3))

    answers = together(3, work)
    assert str(answers.pop(culprit)) == "no such text"
    parts = ("lost its connection to the other processes", "start all of them again")
    assert all(part in str(answer) for answer in answers for part in parts)


def test_nobody_waits_for_ever_for_one_that_hangs(together, monkeypatch):
    monkeypatch.setattr(distributed, "TIMEOUT", timedelta(seconds=8))  # they have to meet within it, too
    stopped = FORK.Event()

    def work() -> None:
        if rank() == 1:
            stopped.wait(60)  # were the other to wait for longer, both would go on
        try:
            all_reduce_(torch.ones(3))
        finally:
            stopped.set()

    assert all("lost its connection to the other processes" in str(answer) for answer in together(2, work))


@pytest.mark.parametrize(
    ("environment", "device", "named"),
    [
        ({"WORLD_SIZE": "two"}, "cpu", "WORLD_SIZE must be a whole number, got 'two'"),
        ({"WORLD_SIZE": "2"}, "cpu", "2 processes cannot connect"),
        ({"WORLD_SIZE": "2"}, "cuda:1", "must be cpu or cuda"),
        ({"WORLD_SIZE": "2", "LOCAL_RANK": "64"}, "cuda", "GPU"),
    ],
)
def test_what_torchrun_would_not_do_is_named(environment, device, named, monkeypatch):
    for name in ("RANK", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert named in refused(process_group(device).__enter__)


def assert_same(together: CalibrationStats, alone: CalibrationStats) -> None:
    for ours, theirs in zip(together.layers, alone.layers, strict=True):
        for name, value in vars(theirs).items():
            scale = value.abs().max().item() if value.numel() else 0.0
            assert_close(getattr(ours, name), value, rtol=1e-4, atol=1e-5 * scale, msg=name)


# Shares of whole batches, and where there are too few.
@pytest.mark.parametrize("tokens_per_batch", [100, pytest.param(10_000, marks=pytest.mark.slow)])
def test_a_calibration_is_the_same(family_case, together, monkeypatch, tokens_per_batch):
    monkeypatch.setattr(driver, "TOKENS_PER_BATCH", tokens_per_batch)

    def work() -> tuple[CalibrationStats, list[Progress]]:
        events: list[Progress] = []
        return calibrate(family_case.loaded, family_case.tokens, progress=events.append), events

    for stats, events in together(3, work):
        assert_same(stats, family_case.stats)
        assert stats.tokens == family_case.stats.tokens
        assert not any(event.partial for event in events)
        assert {event.total for event in events} <= {4, 5, 6}


def test_layers_that_are_kept_away_are_calibrated_alike(case, tiny_llama_gqa, as_loaded, together):
    loaded = as_loaded(tiny_llama_gqa())
    for block in blocks(loaded.model):
        offload_(block.mlp, "cpu", on_disk=False)
    loaded = replace(loaded, fingerprint="kept away")
    for stats in together(3, lambda: calibrate(loaded, case.tokens, progress=False)):
        assert_same(stats, case.stats)


def test_the_first_process_alone_keeps_and_reads_a_calibration(case, together, monkeypatch, tmp_path):
    def work() -> CalibrationStats:
        monkeypatch.setenv("INTRASLICE_CACHE", str(tmp_path / f"disk {rank()}"))
        return calibrate(case.loaded, case.tokens, progress=False)

    first = together(2, work)
    assert [path.name for path in tmp_path.glob("disk *")] == ["disk 0"]
    monkeypatch.setattr(driver, "_calibrate_batch", None)  # no further calibration works
    for ours, theirs in zip(together(2, work), first, strict=True):
        assert_close(vars(ours.layers[1]), vars(theirs.layers[1]), rtol=0, atol=0)


def test_processes_with_other_text_are_refused_in_all(case, together):
    answers = together(3, lambda: calibrate(case.loaded, case.tokens[rank() // 2 :], progress=False))
    assert all("differ in model or calibration tokens" in str(answer) for answer in answers)


def test_a_model_sliced_in_sequence_is_the_same(family_case, together, monkeypatch):
    case, counts = family_case, []
    plan = case.plan(estimator="uniform", order="sequential")

    def embed(model, tokens):
        counts.append(len(tokens))
        return hidden_states.embed(model, tokens)

    def work() -> tuple[Tensor, int]:
        return case.cut(plan)(case.tokens[:4], use_cache=False).logits, counts.pop()

    monkeypatch.setattr(sequential, "embed", embed)
    answers = together(3, work)
    assert [sequences for _, sequences in answers] == [5, 5, 6]
    expected, _ = work()
    for found, _ in answers:
        assert_close(found, expected, rtol=1e-3, atol=1e-3 * expected.abs().max().item())


@pytest.mark.parametrize("windows", [2, 16])  # for one process none, or other shares than batches
def test_losses_are_the_same_in_their_order(case, together, windows):
    expected = measure_losses(case.dense, case.tokens[:windows], progress=False)
    for found in together(3, lambda: measure_losses(case.dense, case.tokens[:windows], progress=False)):
        assert (found.done, found.total, found.sizes) == (windows, windows, expected.sizes)
        assert_close(torch.tensor(found.sums), torch.tensor(expected.sums), rtol=1e-6, atol=1e-5)


@pytest.mark.parametrize(
    ("methods", "kept"),  # points and the dense model's perplexity, where there are points
    [(("intraslice", "intraslice+", "crossmodule"), [2, 3, 2, 3]), (("magnitude",), [0, 2, 0, 2])],
)
def test_a_sweep_has_the_same_rows_whatever_the_methods(case, together, monkeypatch, tmp_path, methods, kept):
    texts = Texts(case.stats, case.tokens, case.tokens[:4])
    wanted = points(methods, ("pca",), (0.2, 0.4))

    def work():
        disk = tmp_path / f"disk {rank()}"
        monkeypatch.setenv("INTRASLICE_CACHE", str(disk))
        return sweep(case.loaded, texts, wanted, progress=False), len(list((disk / "sweep").glob("*.json")))

    answers = together(4, work)
    expected = sweep(case.loaded, texts, wanted, progress=False)
    for rows, _ in answers:
        assert rows[["method", "sliced_total"]].equals(expected[["method", "sliced_total"]])
        for column in ("perplexity", "dense_perplexity"):
            assert rows[column].tolist() == pytest.approx(expected[column].tolist(), rel=1e-5)
    assert [count for _, count in answers] == kept


TORCHRUN = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "--standalone", "-m", "intraslice"]
ALONE = ("generate", "inspect", "sensitivity", "tasks --tasks any", "benchmark")
ALONE += ("export --gguf f", "search --out f", "publish --out f")
# Left alone, the importances would spare this model's attention.
BOTH_MODULES = ["--estimator", "pca", "--bias", "0.6", "--sparsity", "0.4"]


@pytest.fixture(scope="module")
def home(tmp_path_factory, word_tokenizer) -> Path:
    """A tiny model with its text; one process and two keep their results apart."""
    home = tmp_path_factory.mktemp("processes")
    FAMILIES["llama-mha"]().save_pretrained(home / "tiny")
    word_tokenizer(WORDS).save_pretrained(home / "tiny")
    write_words(home / "text.txt")
    return home


@pytest.fixture
def words(home) -> list[str]:
    files = ["--model", str(home / "tiny"), "--calibration", str(home / "text.txt"), "--eval", str(home / "text.txt")]
    amounts = ["--sequences", "17", "--length", "24", "--eval-tokens", "120"]  # halves of neither are whole
    return [*files, *amounts, "--device", "cpu", "--dtype", "float32", "--json"]


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
    apart = ("seconds", "peak_rss_bytes", *perplexities)
    assert without(two, *apart) == without(one, *apart)
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
def test_evaluate_by_torchrun_answers_as_one_process_does(home, words, capsys, monkeypatch, order):
    command = ["evaluate", *words, "--order", order, *BOTH_MODULES]
    monkeypatch.setenv("INTRASLICE_CACHE", str(home / "one"))
    assert main(command) == 0
    one = json.loads(capsys.readouterr().out)
    environment = {**os.environ, "INTRASLICE_CACHE": str(home / "two"), "OMP_NUM_THREADS": "1"}
    result = subprocess.run([*TORCHRUN, *command], capture_output=True, text=True, env=environment, timeout=600)
    assert result.returncode == 0, result.stderr
    assert_same_evaluation(one, json.loads(result.stdout))  # one object, or it is no JSON
    assert told(result.stderr, "calibrate") <= {"8"}  # of 17 sequences; none where another test's calibration was found
    assert_shares(result.stderr)


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
        ("ratios --recover distill-own", "recovery distill-own"),
        ("slice --order one-shot --stream --out folder", "--stream"),
        ("evaluate --ratios search", "--ratios search"),
        ("evaluate --estimator auto", "--estimator auto"),
        ("evaluate --method crossmodule", "crossmodule in the sequential order"),
        ("evaluate --method crossmodule --order one-shot", None),
        ("evaluate --method magnitude", None),
        ("sweep --methods intraslice+ --recover distill", None),
        ("paper --recover distill", None),
        ("evaluate --sequences 1", "sequences must be at least 2, one for each process, got 1"),
    ],
)
def test_what_one_process_must_do_alone_is_refused_before_any_work(monkeypatch, words, what):
    monkeypatch.setattr("intraslice.cli.run.size", lambda: 2)
    arguments = parser().parse_args(words.split())
    if what is None:
        assert Run(arguments).seconds == {}
        return
    message = refused(Run, arguments)
    assert message.startswith(what)
    assert "one process" in message or "start fewer processes" in message


def test_a_slice_is_not_streamed_by_some_of_the_processes(monkeypatch):
    monkeypatch.setattr(commands, "memory_is_short", lambda *_: True)
    run = Run(parser().parse_args(["slice", "--order", "one-shot", "--out", "folder"]))
    assert commands._should_stream(run)
    run.is_alone = False
    assert not commands._should_stream(run)
