"""The command line on a tiny model and a text of one's own: one JSON object."""

from __future__ import annotations

import os
import sys

import pytest

from intraslice.__main__ import main
from intraslice.core.registry import ESTIMATORS, RECOVERIES
from intraslice.methods.registry import METHODS
from intraslice.pretrained.precision import choose_device, choose_dtype

EVALUATED = {
    "model",
    "method",
    "estimator",
    "head_fraction",
    "gradient_group",
    "bias",
    "cap",
    "order",
    "shapes",
    "iterative",
    "epochs",
    "locked",
    "sparsity_asked",
    "removed_fraction",
    "parameters",
    "kv_bytes_per_token",
    "perplexity",
    "perplexity_error",
    "perplexity_ratio",
    "divergence",
    "ratios",
    "protocol",
    "seconds",
    "peak_rss_bytes",
}


@pytest.fixture(autouse=True)
def cache(tmp_path_factory, monkeypatch):
    monkeypatch.setenv("INTRASLICE_CACHE", str(tmp_path_factory.getbasetemp() / "commands-cache"))


@pytest.mark.parametrize(
    "command", ["ratios", "evaluate", "slice", "export", "generate", "inspect", "sensitivity", "sweep"]
)
def test_every_command_explains_itself(command, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "2000")  # no word is broken at its hyphen
    with pytest.raises(SystemExit) as caught:
        main([command, "--help"])
    assert caught.value.code == 0
    told = " ".join(capsys.readouterr().out.split())
    for entry in (*METHODS.values(), *ESTIMATORS.values(), *RECOVERIES.values()):
        assert f"{entry.name}: {entry.explanation}" in told


@pytest.mark.parametrize("method", METHODS)
def test_evaluate_answers_alike_for_every_method(run, method):
    result = run("evaluate", "--method", method, "--sparsity", "0.25")
    extra = {"slicing", "width", "untied_total", "note"} if method == "crossmodule" else set()
    extra |= {"recovery_passes"} if method == "intraslice+" else set()
    assert set(result) == EVALUATED | extra
    assert set(result["parameters"]) == {"dense_total", "sliced_total", "dense_decoder", "sliced_decoder"}
    assert set(result["seconds"]) == {"load", "calibrate", "slice", "evaluate"}
    assert result["protocol"]["targets"] == "sampled"
    assert set(result["perplexity"]) == set(result["kv_bytes_per_token"]) == {"dense", "sliced"}
    assert result["removed_fraction"] == pytest.approx(0.25, abs=0.12)  # sizes of a tiny model are coarse
    assert result["perplexity"]["sliced"] != result["perplexity"]["dense"]


def test_a_locked_ratio_stays_and_is_told(run):
    result = run("ratios", "--lock", "1", "mlp", "5", "--lock", "0", "attention", "50")
    assert result["locked"] == [[1, "mlp", 0.05], [0, "attention", 0.5]]
    assert (result["ratios"][1][1], result["ratios"][0][0]) == (0.05, 0.5)
    assert result["removed_fraction"] == pytest.approx(run("ratios")["removed_fraction"], abs=0.02)


@pytest.mark.parametrize("method", ["intraslice", "crossmodule", "modegpt"])
def test_nothing_removed_is_the_dense_model(run, method):
    values = run("evaluate", "--method", method, "--sparsity", "0")["perplexity"]
    assert values["sliced"] == pytest.approx(values["dense"], rel=1e-3)


def test_errors_are_named_beside_perplexities(run):
    result = run("evaluate", "--sparsity", "0.4")
    values, errors, ratio = (result[key] for key in ("perplexity", "perplexity_error", "perplexity_ratio"))
    assert all(0 < errors[name] < values[name] for name in ("dense", "sliced"))
    assert ratio["value"] == pytest.approx(values["sliced"] / values["dense"])
    assert 0 < ratio["standard_error"] < ratio["value"]
    assert 0 < result["divergence"]["standard_error"] < result["divergence"]["value"]


@pytest.mark.parametrize("dtype", ["auto", "bfloat16"])
def test_the_protocol_says_in_which_precision_it_was(run, dtype):
    result = run("evaluate", "--sparsity", "0.3", "--dtype", dtype, "--device", "auto")
    assert result["protocol"]["dtype"] == choose_dtype(dtype, choose_device())


def test_a_sliced_folder_names_the_options_of_slicing_that_it_ignores(run, words, tmp_path, caplog, capsys):
    folder = str(tmp_path / "sliced")
    run("slice", "--out", folder)
    run("evaluate", "--model", folder, "--sparsity", "0.4", "--method", "wanda", "--lock", "1", "mlp", "5")
    ignored = "method, sparsity, locked, calibration text, calibration sequences"
    assert caplog.messages[-1] == f"a sliced model does not use {ignored}; ignored"
    assert main(["evaluate", *words, "--model", folder, "--answers"]) == 2
    assert "no dense model" in capsys.readouterr().err.splitlines()[-1]
    for more in ([], ["--stream", "--order", "one-shot"]):
        assert main(["slice", *words, "--model", folder, "--out", str(tmp_path / "again"), *more]) == 2
        assert f"{folder} is sliced already; expected a dense model" in capsys.readouterr().err.splitlines()[-1]


@pytest.mark.parametrize("method", ["intraslice", "crossmodule", "modegpt"])
def test_a_saved_model_is_evaluated_as_it_was_in_memory(run, method, tmp_path):
    folder = str(tmp_path / "sliced")
    in_memory = run("evaluate", "--method", method, "--sparsity", "0.4")
    assert run("slice", "--method", method, "--sparsity", "0.4", "--out", folder)["removed_fraction"] > 0.1
    reopened = run("evaluate", "--model", folder)
    assert reopened["perplexity"]["sliced"] == pytest.approx(in_memory["perplexity"]["sliced"], abs=1e-3)
    for key in set(in_memory) - {
        "model",
        "seconds",
        "peak_rss_bytes",
        "divergence",
        *(key for key in in_memory if "perplexity" in key),
    }:
        assert reopened[key] == in_memory[key]
    assert run("generate", "--model", folder, "--max-new-tokens", "3", "--prompt", "w7 w8")["text"].keys() == {"sliced"}


def test_the_slicing_fraction_is_the_cross_module_method_s_own(run):
    result = run("evaluate", "--method", "crossmodule", "--slicing", "0.25")
    assert result["width"] == 40
    assert result["slicing"] == pytest.approx(1 - 40 / 54)


@pytest.mark.parametrize(
    "options",
    [
        ["--head-fraction", "0.25"],
        ["--gradient-group", "2"],
        ["--targets", "text"],
        ["--estimator", "fisher", "--head-fraction", "0.25"],
    ],
)
def test_the_estimators_units_groups_and_targets_are_options(run, options):
    same = ["--bias", "0.8", *(["--estimator", "fisher"] if "fisher" in options else [])]
    usual, own = run("ratios", *same), run("ratios", *same, *options)
    assert own["ratios"] != usual["ratios"]
    assert own["removed_fraction"] == pytest.approx(usual["removed_fraction"], abs=0.02)
    assert own["reasons"]["attention_threshold"] != usual["reasons"]["attention_threshold"]


def test_ratios_and_generate_take_every_method(run):
    assert len(run("ratios")["layers"]) == 3
    assert run("ratios", "--method", "crossmodule")["ratios"] is None
    assert set(run("generate", "--method", "wanda", "--max-new-tokens", "3", "--prompt", "w7 w8")["text"]) == {
        "dense",
        "sliced",
    }


def test_inspect_has_spectra_shift_and_faults(run):
    result = run("inspect", "--parts", "spectra", "shift", "faults", "--methods", "intraslice", "crossmodule")
    assert {row["part"] for row in result["spectra"]} >= {"head 0", "value head 2", "mlp", "residual", "directions"}
    assert [len(layer["energy"][0]) for layer in result["pairs"]] == [4, 4, 4]
    assert len(result["shift"]) == 2 * 3 * 3
    assert {row["method"] for row in result["shift"]} == {"intraslice", "crossmodule"}
    assert result["shift_of"]["tokens"] == 96
    assert set(result["faults"]["perplexity"]) == {"outputs", "reads", "reads and writes", "writes"}


def test_sensitivity_has_every_module_and_a_verdict(run):
    result = run("sensitivity", "--ratio", "0.4")
    assert [(row["layer"], row["module"]) for row in result["modules"]] == [
        (layer, module) for layer in range(3) for module in ("attention", "mlp")
    ]
    assert set(result["rho"]) == {name for name, estimator in ESTIMATORS.items() if estimator.importance}
    assert set(result["rho"]["pca"]) == {"attention", "mlp", "all"}
    grouped = run("sensitivity", "--ratio", "0.4", "--gradient-group", "4")
    for usual, own in zip(result["modules"], grouped["modules"], strict=True):
        assert own["damage"] == usual["damage"]
        assert own["pca"] != usual["pca"]
    both = run("sensitivity", "--ratio", "0.2", "0.4", "--measure", "loss")
    assert [one["ratio"] for one in both["ratios"]] == [0.2, 0.4]
    assert any(row["damage"] < 0 for row in both["ratios"][1]["modules"])
    assert all(row["damage"] > 0 for row in result["modules"])


def test_sensitivity_in_context_heals_a_sliced_model(run):
    result = run("sensitivity", "--context", "--sparsity", "0.4")
    assert result["ratio"] is None
    assert len(result["modules"]) == 6
    assert result["context"]["value"] > max(row["damage"] for row in result["modules"]) > 0


def test_text_for_people_is_printed_without_json(words, capsys):
    plain = [word for word in words if word != "--json"]
    for command, part in (("ratios", "layer  attention"), ("inspect", "residual"), ("sensitivity", "Spearman")):
        assert main([command, *plain]) == 0
        assert part in capsys.readouterr().out
    for method, has_bias in (("wanda", True), ("flatllm", False), ("shortgpt", False)):
        assert main(["ratios", *plain, "--method", method]) == 0
        assert ("bias 1.00" in capsys.readouterr().out) == has_bias


@pytest.mark.parametrize(
    ("method", "settings", "ignored"),
    [
        ("wanda", ["--estimator", "fisher", "--bias", "1.3", "--order", "one-shot"], "estimator"),
        ("shortgpt", ["--bias", "1.3", "--cap", "0.7", "--shapes", "runtime"], "bias, shapes, cap"),
        ("crossmodule", ["--lock", "1", "mlp", "25"], "locked"),
    ],
)
def test_settings_that_a_method_does_not_use_are_named(run, caplog, method, settings, ignored):
    run("ratios", "--method", method, *settings)
    assert caplog.messages == [f"method {method} does not use {ignored}; ignored"]


def test_a_reader_may_leave_before_the_end(words, monkeypatch):
    """As `head` does."""
    reader, writer = os.pipe()
    os.close(reader)
    with os.fdopen(writer, "w") as stdout:
        monkeypatch.setattr(sys, "stdout", stdout)
        assert main(["ratios", *words]) == 0


def test_a_sliced_folder_without_its_tokenizer_is_no_gguf_file(run, words, tmp_path, capsys):
    folder, file = tmp_path / "sliced", tmp_path / "there.gguf"
    run("slice", "--out", str(folder))
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (folder / name).unlink()
    assert main(["export", *words, "--model", str(folder), "--gguf", str(file)]) == 2
    assert str(folder) in capsys.readouterr().err.splitlines()[-1]
    assert not file.exists()
