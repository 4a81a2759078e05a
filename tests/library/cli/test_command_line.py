"""The commands on a tiny model: their JSON, their text, that one reads what another wrote, and damage to the cache."""

import json
import os
import random
import shutil
import sys
from pathlib import Path

import pytest

from intraslice.__main__ import main
from intraslice.core.registry import ESTIMATORS
from intraslice.methods.registry import METHODS
from intraslice.pretrained.precision import choose_device, choose_dtype

KEYS = """
model method estimator head_fraction gradient_group bias cap order shapes iterative epochs locked sparsity_asked
removed_fraction parameters kv_bytes_per_token perplexity perplexity_error perplexity_ratio divergence ratios protocol
seconds peak_rss_bytes
"""


def without(result: dict, keys: set[str]) -> dict:
    return {key: value for key, value in result.items() if key not in keys}


@pytest.mark.parametrize("method", METHODS)
def test_evaluate_has_the_same_keys_for_every_method(run, method):
    result = run(f"evaluate --method {method} --sparsity 0.25")
    extra = {"slicing", "width", "untied_total", "note"} if method == "crossmodule" else set()
    extra |= {"recovery_passes"} if method == "intraslice+" else set()
    assert set(result) == {*KEYS.split()} | extra
    assert set(result["parameters"]) == {"dense_total", "sliced_total", "dense_decoder", "sliced_decoder"}
    assert set(result["seconds"]) == {"load", "calibrate", "slice", "evaluate"}
    assert result["protocol"]["targets"] == "sampled"
    assert set(result["perplexity"]) == set(result["kv_bytes_per_token"]) == {"dense", "sliced"}
    assert result["removed_fraction"] == pytest.approx(0.25, abs=0.12)  # sizes of a tiny model are coarse
    assert result["perplexity"]["sliced"] != result["perplexity"]["dense"]


@pytest.mark.parametrize("dtype", ["auto", "bfloat16"])
def test_the_protocol_says_the_precision_and_errors_stand_beside_perplexities(run, dtype):
    result = run(f"evaluate --sparsity 0.4 --dtype {dtype} --device auto")
    assert result["protocol"]["dtype"] == choose_dtype(dtype, choose_device())
    values, errors, ratio = (result[key] for key in ("perplexity", "perplexity_error", "perplexity_ratio"))
    assert all(0 < errors[name] < values[name] for name in ("dense", "sliced"))
    assert ratio["value"] == pytest.approx(values["sliced"] / values["dense"])
    assert 0 < ratio["standard_error"] < ratio["value"]
    assert 0 < result["divergence"]["standard_error"] < result["divergence"]["value"]


@pytest.mark.parametrize("method", ["intraslice", "crossmodule", "modegpt"])
def test_a_saved_model_is_evaluated_as_it_was_in_memory(run, error_of, method, caplog):
    in_memory = run(f"evaluate --method {method} --sparsity 0.4")
    assert run(f"slice --method {method} --sparsity 0.4 --out sliced")["removed_fraction"] > 0.1
    caplog.clear()
    reopened = run("evaluate --model sliced --sparsity 0.4 --method wanda --lock 1 mlp 5 --seed 1")
    ignored = "--method, --sparsity, --lock, --calibration, --sequences"
    assert caplog.messages == [f"{ignored} ignored: not used by a sliced model"]
    assert reopened["perplexity"]["sliced"] == pytest.approx(in_memory["perplexity"]["sliced"], abs=1e-3)
    changing = {"model", "seconds", "peak_rss_bytes", "divergence", *(key for key in in_memory if "perplexity" in key)}
    assert without(reopened, changing) == without(in_memory, changing)
    assert run("generate --model sliced --max-new-tokens 3 --prompt w7")["text"].keys() == {"sliced"}
    for flag in ("--answers", "--facts"):
        assert f"{flag} compares with the dense model's" in error_of(f"evaluate --model sliced {flag}")
    for more in ("", " --stream --order one-shot"):
        message = error_of(f"slice --model sliced --out again{more}")
        assert "sliced is sliced already; expected a dense model" in message


@pytest.mark.parametrize(
    "options",
    ["--head-fraction 0.25", "--gradient-group 2", "--targets text", "--estimator fisher --head-fraction 0.25"],
)
def test_the_estimators_units_groups_and_targets_are_options(run, options):
    same = "ratios --bias 0.8" + (" --estimator fisher" if "fisher" in options else "")
    usual, own = run(same), run(f"{same} {options}")
    assert own["ratios"] != usual["ratios"]
    assert own["removed_fraction"] == pytest.approx(usual["removed_fraction"], abs=0.02)
    assert own["reasons"]["attention_threshold"] != usual["reasons"]["attention_threshold"]


def test_layers_may_be_on_disk(run):
    in_memory, on_disk = (run(f"evaluate{more}")["perplexity"] for more in ("", " --device-map disk"))
    assert on_disk == pytest.approx(in_memory, rel=1e-4)


def test_ratios_and_generate_take_every_method_locks_and_slicing_fractions(run):
    assert len(run("ratios")["layers"]) == 3
    assert run("ratios --method crossmodule")["ratios"] is None
    generated = run("generate --method wanda --max-new-tokens 3 --prompt w7")
    assert set(generated["text"]) == {"dense", "sliced"}
    result = run("ratios --lock 1 mlp 5 --lock 0 attention 50")
    assert result["locked"] == [[1, "mlp", 0.05], [0, "attention", 0.5]]
    assert (result["ratios"][1][1], result["ratios"][0][0]) == (0.05, 0.5)
    assert result["removed_fraction"] == pytest.approx(run("ratios")["removed_fraction"], abs=0.02)
    result = run("evaluate --method crossmodule --slicing 0.25")
    assert result["width"] == 40
    assert result["slicing"] == pytest.approx(1 - 40 / 54)


def test_inspect_has_spectra_shift_and_faults(run):
    result = run("inspect --parts spectra shift faults --methods intraslice crossmodule")
    assert {row["part"] for row in result["spectra"]} >= {"head 0", "value head 2", "mlp", "residual", "directions"}
    assert [len(layer["energy"][0]) for layer in result["pairs"]] == [4, 4, 4]
    assert len(result["shift"]) == 2 * 3 * 3
    assert {row["method"] for row in result["shift"]} == {"intraslice", "crossmodule"}
    assert result["shift_of"]["tokens"] == 96
    assert set(result["faults"]["perplexity"]) == {"outputs", "reads", "reads and writes", "writes"}


def test_sensitivity_has_every_module_and_a_verdict(run):
    result = run("sensitivity --ratio 0.4")
    modules = [(layer, module) for layer in range(3) for module in ("attention", "mlp")]
    assert [(row["layer"], row["module"]) for row in result["modules"]] == modules
    assert set(result["rho"]) == {name for name, estimator in ESTIMATORS.items() if estimator.importance}
    assert set(result["rho"]["pca"]) == {"attention", "mlp", "all"}
    grouped = run("sensitivity --ratio 0.4 --gradient-group 4")
    for usual, own in zip(result["modules"], grouped["modules"], strict=True):
        assert own["damage"] == usual["damage"]
        assert own["pca"] != usual["pca"]
    both = run("sensitivity --ratio 0.2 0.4 --measure loss")
    assert [one["ratio"] for one in both["ratios"]] == [0.2, 0.4]
    assert any(row["damage"] < 0 for row in both["ratios"][1]["modules"])
    assert all(row["damage"] > 0 for row in result["modules"])
    context = run("sensitivity --context --sparsity 0.4")
    assert (context["ratio"], len(context["modules"])) == (None, 6)
    assert context["context"]["value"] > max(row["damage"] for row in context["modules"]) > 0


def test_text_for_people_is_printed_without_json(printed):
    for command, part in (("ratios", "layer  attention"), ("inspect", "residual"), ("sensitivity", "Spearman")):
        assert part in printed(command)
    for method, has_bias in (("wanda", True), ("flatllm", False), ("shortgpt", False)):
        assert ("bias 1.00" in printed(f"ratios --method {method}")) == has_bias


def test_a_reader_may_leave_before_the_end(words, monkeypatch):
    """As `head` does."""
    reader, writer = os.pipe()
    os.close(reader)
    with os.fdopen(writer, "w") as stdout:
        monkeypatch.setattr(sys, "stdout", stdout)
        assert main(["ratios", *words]) == 0


def test_a_sliced_folder_without_its_tokenizer_is_no_gguf_file(run, error_of, home):
    run("slice --out sliced")
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (home / "sliced" / name).unlink()
    assert "sliced" in error_of("export --model sliced --gguf there.gguf")
    assert not (home / "there.gguf").exists()


CACHED = [
    "evaluate --order one-shot --sparsity 0.3",
    "sweep --methods intraslice --estimators pca --sparsities 0.2 --no-speed",
    "sensitivity --ratio 0.5",
]
CHANGING = {"seconds", "peak_rss_bytes"}


def numbers(answer: object) -> object:
    """An answer without its times and memory."""
    if isinstance(answer, dict):
        return {key: numbers(value) for key, value in answer.items() if key not in CHANGING}
    return [numbers(value) for value in answer] if isinstance(answer, list) else answer


def damage(file: Path, dice: random.Random) -> str:
    """Flip a bit of a file, cut it, or empty it."""
    content = bytearray(file.read_bytes())
    way = dice.choice(("flip", "flip", "flip", "cut", "empty"))
    if way == "flip" and content:
        place = dice.randrange(min(len(content), dice.choice((200, len(content)))))
        content[place] ^= 1 << dice.randrange(8)
    else:
        content = content[: dice.randrange(len(content) + 1)] if way == "cut" else bytearray()
    file.write_bytes(content)
    return f"{way} {file.name}"


@pytest.mark.parametrize("times", [3, pytest.param(280, marks=pytest.mark.slow)])
def test_a_damaged_file_of_the_cache_heals(times, words, own_cache, tmp_path, capsys) -> None:
    def answers() -> list[object]:
        """Numbers of each command, or what stands on stderr."""
        found = []
        for line in CACHED:
            command, *more = line.split()
            status, printed = main([command, *words, "--json", *more]), capsys.readouterr()
            found.append(numbers(json.loads(printed.out)) if status == 0 else printed.err.strip())
        return found

    expected = answers()
    assert all(isinstance(answer, dict) for answer in expected), expected
    shutil.copytree(own_cache, tmp_path / "whole")
    dice = random.Random(times)
    for _ in range(times):
        shutil.rmtree(own_cache)
        shutil.copytree(tmp_path / "whole", own_cache)
        files = sorted(file for file in own_cache.rglob("*") if file.is_file() and file.name != ".lock")
        what = damage(dice.choice(files), dice)
        for answer, whole in zip(answers(), expected, strict=True):
            assert answer == whole or (isinstance(answer, str) and len(answer.splitlines()) == 1), (what, answer)
        assert answers() == expected, what
