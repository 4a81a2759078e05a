"""What three processes find together is what one finds alone, and each of them does a share."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

from intraslice.calibration import driver
from intraslice.calibration.driver import calibrate
from intraslice.calibration.stats import CalibrationStats
from intraslice.cli.parser import parser
from intraslice.cli.run import Run
from intraslice.core.config import SliceConfig
from intraslice.core.errors import UserError
from intraslice.core.progress import Progress
from intraslice.diagnostics import ablation
from intraslice.distributed.sharing import rank
from intraslice.evaluation.perplexity import measure_losses
from intraslice.evaluation.sweep import Texts, points, sweep
from intraslice.methods import crossmodule
from intraslice.methods.registry import METHODS, plan_by, slice_by
from intraslice.modeling import hidden_states
from intraslice.modeling.families import blocks
from intraslice.modeling.offload import offload_
from intraslice.search.evolution import SearchConfig
from intraslice.search.measure import Candidates
from intraslice.search.ratio_search import SearchResult, search_ratios
from intraslice.slicing import sequential


@pytest.fixture(autouse=True)
def cache(own_cache) -> None:
    """Nothing is found that another test kept."""


def assert_same(together: CalibrationStats, alone: CalibrationStats) -> None:
    for ours, theirs in zip(together.layers, alone.layers, strict=True):
        for name, value in vars(theirs).items():
            scale = value.abs().max().item() if value.numel() else 0.0
            assert_close(getattr(ours, name), value, rtol=1e-4, atol=1e-5 * scale, msg=name)


@torch.no_grad()
def logits(model, tokens: Tensor) -> Tensor:
    return model(tokens, use_cache=False).logits


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
        plans = [
            plan_by("intraslice", family_case.loaded.model, found, SliceConfig())
            for found in (stats, family_case.stats)
        ]
        assert plans[0].layers == plans[1].layers


def test_layers_that_are_kept_away_are_calibrated_alike(tiny_case, tiny_llama_gqa, as_loaded, together):
    case, loaded = tiny_case("llama-gqa"), as_loaded(tiny_llama_gqa())
    for block in blocks(loaded.model):
        offload_(block.mlp, "cpu", on_disk=False)
    loaded = replace(loaded, fingerprint="kept away")
    for stats in together(3, lambda: calibrate(loaded, case.tokens, progress=False)):
        assert_same(stats, case.stats)


def test_the_first_process_alone_keeps_and_reads_a_calibration(tiny_case, together, monkeypatch, tmp_path):
    case = tiny_case("llama-mha")

    def work() -> CalibrationStats:
        monkeypatch.setenv("INTRASLICE_CACHE", str(tmp_path / f"disk {rank()}"))
        return calibrate(case.loaded, case.tokens, progress=False)

    first = together(2, work)
    assert [path.name for path in tmp_path.glob("disk *")] == ["disk 0"]
    monkeypatch.setattr(driver, "_calibrate_batch", None)  # no further calibration works
    for ours, theirs in zip(together(2, work), first, strict=True):
        for name, value in vars(ours.layers[1]).items():
            assert torch.equal(value, getattr(theirs.layers[1], name))


def test_fewer_sequences_than_processes_are_refused(tiny_case, together):
    case = tiny_case("llama-mha")
    answers = together(3, lambda: calibrate(case.loaded, case.tokens[:2], progress=False))
    assert all(isinstance(answer, UserError) and "start fewer processes" in str(answer) for answer in answers)


@pytest.fixture
def embedded(monkeypatch) -> list[int]:
    """How many sequences were sent through the layers, each time."""
    counts: list[int] = []

    def embed(model, tokens):
        counts.append(len(tokens))
        return hidden_states.embed(model, tokens)

    for user in (sequential, crossmodule, ablation):
        monkeypatch.setattr(user, "embed", embed)
    return counts


@pytest.mark.parametrize("method", ["intraslice", "crossmodule"])
def test_a_model_sliced_in_sequence_is_the_same(request, family_case, together, embedded, method):
    case = request.getfixturevalue("cross_module_case") if method == "crossmodule" else family_case
    plan = plan_by(method, case.loaded.model, case.stats, SliceConfig(0.4, "uniform"))

    def work() -> tuple[Tensor, int]:
        model = slice_by(method, case.loaded.model, plan, case.stats, case.tokens, progress=False)
        return logits(model, case.tokens[:4]), embedded.pop()

    answers = together(3, work)
    assert [sequences for _, sequences in answers] == [5, 5, 6]
    expected, _ = work()
    assert (expected - logits(case.original, case.tokens[:4])).abs().max() > 0.05
    for found, _ in answers:
        assert_close(found, expected, rtol=1e-3, atol=1e-3 * expected.abs().max().item())


@pytest.mark.parametrize("fault", ["outputs", "reads and writes"])
def test_an_ablated_model_is_the_same(tiny_case, together, embedded, fault):
    case = tiny_case("llama-gqa")

    def work() -> tuple[Tensor, int]:
        model = ablation.ablated_model(case.loaded.model, fault, 32, case.tokens, progress=False)
        return logits(model, case.tokens[:4]), embedded.pop()

    answers = together(3, work)
    assert [sequences for _, sequences in answers] == [5, 5, 6]
    expected, _ = work()
    for found, _ in answers:
        assert_close(found, expected, rtol=1e-3, atol=1e-3 * expected.abs().max().item())


@pytest.mark.parametrize("windows", [2, 16])  # for one process none, or other shares than batches
def test_losses_are_the_same_in_their_order(tiny_case, together, windows):
    case = tiny_case("llama-mha")
    expected = measure_losses(case.loaded.model, case.tokens[:windows], progress=False)
    for found in together(3, lambda: measure_losses(case.loaded.model, case.tokens[:windows], progress=False)):
        assert (found.done, found.total, found.sizes) == (windows, windows, expected.sizes)
        assert_close(torch.tensor(found.sums), torch.tensor(expected.sums), rtol=1e-6, atol=1e-5)


def test_a_search_finds_the_same_and_shares_its_children(tiny_case, together, monkeypatch, tmp_path):
    case, measured, divergence = tiny_case("llama-mha"), [], Candidates.divergence

    def counted(*arguments):
        measured.append(arguments)
        return divergence(*arguments)

    monkeypatch.setattr(Candidates, "divergence", counted)

    def work() -> tuple[SearchResult, int]:
        monkeypatch.setenv("INTRASLICE_CACHE", str(tmp_path / f"disk {rank()}"))
        config, search = SliceConfig(0.3, order="one-shot"), SearchConfig(passes=2, windows=1)
        return search_ratios(case.loaded, case.stats, case.tokens, config, search=search, progress=False), len(measured)

    found = together(3, work)
    (tmp_path / "disk 0").rename(tmp_path / "theirs")
    expected, count = work()
    assert [one for one, _ in found] == [expected] * 3
    assert sum(shared for _, shared in found) == count


def test_a_sweep_has_the_same_rows_whatever_the_methods(tiny_case, together, monkeypatch, tmp_path):
    case = tiny_case("llama-mha")
    texts = Texts(case.stats, case.tokens, case.tokens[:4])
    wanted = points(("intraslice", "intraslice+", "crossmodule"), ("pca",), (0.2, 0.4))

    def work():
        monkeypatch.setenv("INTRASLICE_CACHE", str(tmp_path / f"disk {rank()}"))
        rows = sweep(case.loaded, texts, wanted, progress=False).drop(columns="seconds")
        return rows, len(list((tmp_path / f"disk {rank()}" / "sweep").glob("*.json")))

    answers = together(4, work)
    expected = sweep(case.loaded, texts, wanted, progress=False).drop(columns="seconds")
    for rows, _ in answers:
        assert rows.method.tolist() == expected.method.tolist()
        assert_close(torch.tensor(rows.perplexity), torch.tensor(expected.perplexity), rtol=1e-5, atol=0)
        assert rows.sliced_total.tolist() == expected.sliced_total.tolist()
    assert [kept for _, kept in answers] == [2, 2, 1, 2]  # points; the dense model's perplexity beside the first's


def test_a_sweep_may_have_fewer_points_than_there_are_processes(tiny_case, together, monkeypatch, tmp_path):
    case = tiny_case("llama-mha")
    texts, wanted = Texts(case.stats, case.tokens, case.tokens[:4]), points(("magnitude",), (), (0.2,))

    def work():
        monkeypatch.setenv("INTRASLICE_CACHE", str(tmp_path / f"disk {rank()}"))
        return sweep(case.loaded, texts, wanted, progress=False).drop(columns="seconds")

    answers = together(2, work)
    expected = sweep(case.loaded, texts, wanted, progress=False)
    for rows in answers:
        for column in ("perplexity", "dense_perplexity"):
            assert rows[column].tolist() == pytest.approx(expected[column].tolist(), rel=1e-5)


@pytest.mark.parametrize("iterative", [False, True])
def test_what_one_process_must_do_alone_is_refused_before_it_is_planned(tiny_case, together, iterative):
    case, config = tiny_case("llama-mha"), SliceConfig(0.3, iterative=iterative)

    def work() -> dict[str, str]:
        """What is said against each method."""
        refusals = dict.fromkeys(METHODS, "")
        for method in METHODS:
            try:
                plan_by(method, case.loaded.model, case.stats, config)
            except UserError as error:
                refusals[method] = str(error)
        return refusals

    trains = {"intraslice+", *(("intraslice", "crossmodule") if iterative else ())}
    for refusals in together(2, work):
        assert {method for method, words in refusals.items() if words} == trains
        assert all("requires one process" in refusals[method] for method in trains)


@pytest.mark.parametrize(
    ("words", "named"),
    [
        ("evaluate --method intraslice+", "intraslice+ with recovery distill requires one process, got 2"),
        ("slice --iterative --out folder", "iterative refinement"),
        ("inspect --methods crossmodule intraslice+", "intraslice+ with recovery distill requires one process, got 2"),
        ("evaluate --sequences 1", "sequences must be at least 2, one for each process, got 1"),
        ("sweep --methods intraslice+", None),
        ("sensitivity --iterative", None),
    ],
)
def test_a_command_says_so_before_any_work(together, words, named):
    for answer in together(2, lambda: Run(parser().parse_args(words.split())).seconds):
        assert answer == {} if named is None else named in str(answer)


def test_a_benchmark_wants_one_process(together):
    arguments = parser().parse_args(["benchmark"])
    assert all("without torchrun" in str(answer) for answer in together(2, lambda: arguments.run(Run(arguments))))
