"""The commands on a tiny model: their JSON, their text, and that one reads what another wrote."""

import os
import sys

import pytest

import intraslice
from intraslice.__main__ import main
from intraslice.checkpoints.format import save
from intraslice.core.registry import ESTIMATORS
from intraslice.methods.registry import METHODS
from intraslice.pretrained.precision import choose_device, choose_dtype

KEYS = """
model method estimator head_fraction gradient_group bias cap order shapes epochs locked sparsity_asked
removed_fraction parameters kv_bytes_per_token perplexity perplexity_error perplexity_ratio divergence ratios protocol
seconds peak_rss_bytes
"""


def without(result: dict, keys: set[str]) -> dict:
    return {key: value for key, value in result.items() if key not in keys}


@pytest.mark.parametrize("method", METHODS)
def test_evaluate_has_the_same_keys_for_every_method(run, method):
    result = run(f"evaluate --method {method} --sparsity 0.25")
    extra = {"slicing", "width", "untied_total", "note"} if method == "crossmodule" else set()
    extra |= {"recovery", "recovery_passes"} if method == "intraslice+" else set()
    extra |= {"fit"} if method in ("paper", "paper-direct") else set()
    assert set(result) == {*KEYS.split()} | extra
    assert set(result["parameters"]) == {"dense_total", "sliced_total", "dense_decoder", "sliced_decoder"}
    choice = {"choose"} if METHODS[method].uses_estimator and METHODS[method].measures_auto else set()
    assert set(result["seconds"]) == {"load", "calibrate", "slice", "evaluate"} | choice
    assert result["protocol"]["targets"] == (METHODS[method].targets or "sampled")
    assert set(result["perplexity"]) == set(result["kv_bytes_per_token"]) == {"dense", "sliced"}
    assert result["removed_fraction"] == pytest.approx(0.25, abs=0.12)  # sizes of a tiny model are coarse
    assert result["perplexity"]["sliced"] != result["perplexity"]["dense"]


@pytest.mark.parametrize("dtype", ["auto", "bfloat16"])
def test_the_protocol_says_the_precision(run, dtype):
    result = run(f"evaluate --sparsity 0.4 --dtype {dtype} --device auto")
    assert result["protocol"]["dtype"] == choose_dtype(dtype, choose_device())


@pytest.mark.parametrize("method", ["intraslice", "crossmodule", "modegpt"])
def test_a_saved_model_is_evaluated_as_it_was_in_memory(run, error_of, method, caplog):
    in_memory = run(f"evaluate --method {method} --sparsity 0.4 --targets text")
    assert run(f"slice --method {method} --sparsity 0.4 --targets text --out sliced")["removed_fraction"] > 0.1
    caplog.clear()
    reopened = run("evaluate --model sliced --size 1MB --context 9 --method wanda --lock 1 mlp 5 --seed 1")
    ignored = "--method, --lock, --size, --context, --calibration, --sequences"
    assert caplog.messages == [f"{ignored} ignored: not used by a sliced model"]
    assert reopened["perplexity"]["sliced"] == pytest.approx(in_memory["perplexity"]["sliced"], abs=1e-3)
    changing = {"model", "seconds", "peak_rss_bytes", "divergence", *(key for key in in_memory if "perplexity" in key)}
    assert without(reopened, changing) == without(in_memory, changing)
    generated = run("generate --model sliced --max-new-tokens 3 --prompt w7")
    assert (generated["text"].keys(), generated["ratios"]) == ({"sliced"}, in_memory["ratios"])
    for flag in ("--answers", "--facts"):
        assert f"{flag} compares with the dense model's" in error_of(f"evaluate --model sliced {flag}")
    for more in ("", " --stream --order one-shot"):
        message = error_of(f"slice --model sliced --out again{more}")
        assert "sliced is sliced already; expected a dense model" in message


def test_a_folder_that_was_made_with_a_removed_option_is_evaluated(run, home, monkeypatch):
    monkeypatch.setenv("HOME", str(home))
    made = run("slice --sparsity 0.4 --dtype bfloat16 --out=~/sliced")
    model, tokenizer, record = intraslice.load("sliced")
    record["requested"] |= {"iterative": True, "iterative_above": 0.35}
    save(model, tokenizer, "before", record)
    now, before = (run(f"evaluate --model {folder}") for folder in ("sliced", "before"))
    assert before["iterative"]
    assert before["perplexity"] == now["perplexity"]
    assert now["kv_bytes_per_token"] == made["kv_bytes_per_token"]  # in the precision of the slice


@pytest.mark.parametrize(
    "options",
    ["--head-fraction 0.25", "--gradient-group 2", "--targets text", "--estimator fisher --head-fraction 0.25"],
)
def test_the_estimators_units_groups_and_targets_are_options(run, options):
    same = "ratios --bias 0.8" + (" --estimator fisher" if "fisher" in options else "")
    usual, own = run(same), run(f"{same} {options}")
    assert own["removed_fraction"] == pytest.approx(usual["removed_fraction"], abs=0.02)
    assert own["reasons"]["attention_threshold"] != usual["reasons"]["attention_threshold"]


def test_layers_may_be_on_disk(run):
    in_memory, on_disk = (run(f"evaluate{more}")["perplexity"] for more in ("", " --device-map disk"))
    assert on_disk == pytest.approx(in_memory, rel=1e-4)


def test_ratios_and_generate_take_every_method_and_slicing_fractions(run):
    assert len(run("ratios")["layers"]) == 3
    assert run("ratios --method crossmodule")["ratios"] is None
    generated = run("generate --method wanda --max-new-tokens 3 --prompt w7")
    assert set(generated["text"]) == {"dense", "sliced"}
    result = run("evaluate --method crossmodule --slicing 0.25")
    assert (result["width"], result["sparsity_asked"]) == (40, None)
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
