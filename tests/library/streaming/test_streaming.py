"""One layer in memory at a time: the bits of an ordinary slice, wherever the process is killed, and the command."""

import copy
import json
import os
import re
import signal
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from file_formats import configure
from refusing import refused
from tiny_models import write_words
from transformers import AutoTokenizer, LlamaConfig

import intraslice
from intraslice.__main__ import main
from intraslice.api import compress_loaded
from intraslice.calibration import layerwise
from intraslice.core import cache
from intraslice.core.cache import MAX_BYTES_VARIABLE
from intraslice.core.config import CalibrationConfig, EvaluationConfig, SliceConfig
from intraslice.pipeline import Pipeline
from intraslice.pretrained import memory
from intraslice.pretrained.memory import MEMORY_VARIABLE, estimate_stream, journal_bytes
from intraslice.records import Recipe
from intraslice.slicing import driver
from intraslice.streaming import slice_to_folder


@pytest.fixture
def recipe_for(tmp_path, own_cache, monkeypatch) -> Callable[..., Recipe]:
    """Writes a case's model into a folder, and makes a one-shot recipe for it."""

    def make(case, dtype: str = "float32", method: str = "intraslice", **slicing) -> Recipe:
        folder = tmp_path / case.name
        case.original.save_pretrained(folder)
        case.loaded.tokenizer.save_pretrained(folder)
        if case.name == "qwen2":  # for which transformers opens a tokenizer of its own kind
            monkeypatch.setattr(AutoTokenizer, "from_pretrained", lambda *_, **__: copy.deepcopy(case.loaded.tokenizer))
        text = write_words(tmp_path / "text.txt", 30)
        config = SliceConfig(0.3, **({"order": "one-shot"} | slicing))
        calibration, evaluation = CalibrationConfig(str(text), 6, 24), EvaluationConfig(str(text), 48, 24)
        return Recipe(str(folder), config, calibration, evaluation, method, dtype)

    return make


@pytest.fixture
def recipe(case, recipe_for) -> Recipe:
    return recipe_for(case)


@pytest.fixture
def folder(tmp_path) -> Path:
    return tmp_path / "sliced"


@pytest.fixture
def uninterrupted(tmp_path, folder) -> Callable[[Recipe], dict[str, bytes]]:
    """The files of a recipe's slice, in another folder of the same name, which the model card has."""

    def run(recipe: Recipe) -> dict[str, bytes]:
        slice_to_folder(recipe, tmp_path / "whole" / folder.name, progress=False)
        return files_of(tmp_path / "whole" / folder.name)

    return run


def files_of(folder):
    return {file.name: file.read_bytes() for file in folder.iterdir()}


def left_over(folder, cache):
    """Files of a run beside its folder, and in its cache, but for lock files."""
    beside = [file for file in folder.parent.iterdir() if file.name.startswith(f".{folder.name}")]
    return beside + [file for file in (cache / "unfinished").rglob("*") if file.is_file()]


@pytest.mark.parametrize("dtype", [pytest.param("float32", marks=pytest.mark.slow), "bfloat16"])
def test_the_folder_has_the_bits_of_an_ordinary_slice(family_case, recipe_for, own_cache, folder, dtype):
    recipe = recipe_for(family_case, dtype)
    pipeline = Pipeline(recipe, progress=False)
    expected = compress_loaded(pipeline, pipeline.load_dense())
    plan = slice_to_folder(recipe, folder, progress=False)
    assert plan == expected.plan
    model, tokenizer, made = intraslice.load(folder)
    assert made == json.loads(json.dumps(expected.record))
    assert tokenizer.get_vocab() == expected.tokenizer.get_vocab()
    torch.testing.assert_close(model.state_dict(), expected.model.state_dict(), rtol=0, atol=0)
    assert model.generation_config.to_dict() == expected.model.generation_config.to_dict()
    assert left_over(folder, own_cache) == []


@pytest.mark.parametrize("estimator", ["uniform", "output-error", pytest.param("fisher", marks=pytest.mark.slow)])
def test_the_plan_is_that_of_memory_for_every_estimator(case, recipe_for, folder, estimator):
    recipe = recipe_for(case, estimator=estimator)
    pipeline = Pipeline(recipe, progress=False)
    loaded = pipeline.load_dense()
    stats, _ = pipeline.calibrate(loaded)
    assert slice_to_folder(recipe, folder, progress=False) == pipeline.plan(loaded, stats)


def killed_after(renames: int, recipe, folder) -> bool:
    """Run in another process, which is killed as it renames its file number `renames`; whether it was."""
    process = os.fork()
    if process == 0:
        rename, count = os.replace, 0

        def replace(*paths):
            nonlocal count
            count += 1
            if count > renames:
                os.kill(os.getpid(), signal.SIGKILL)
            rename(*paths)

        cache.os.replace = replace
        slice_to_folder(recipe, folder, progress=False)
        os._exit(0)
    return os.WIFSIGNALED(os.waitpid(process, 0)[1])


@pytest.mark.parametrize("renames", [pytest.param(3, marks=pytest.mark.slow), 4])  # a step renames two files at most
def test_a_killed_run_goes_on_to_the_same_bytes(recipe, own_cache, folder, renames, uninterrupted):
    expected, kills = uninterrupted(recipe), 0
    while kills < 20 and killed_after(renames * (kills > 0), recipe, folder):
        kills += 1
        assert left_over(folder, own_cache)
        assert not folder.exists()
    assert 4 <= kills < 20  # every run gets further than the one before
    assert files_of(folder) == expected
    assert left_over(folder, own_cache) == []


def test_a_finished_layer_is_not_read_again(recipe, folder, monkeypatch):
    entered, open_layer = [], layerwise.open_layer

    def opened(model, index):
        entered.append(index)
        in_memory = {name.split(".")[-2] for name, parameter in model.named_parameters() if not parameter.is_meta}
        assert in_memory == {"norm", "input_layernorm", "post_attention_layernorm"}
        return open_layer(model, index)

    def stop(event):
        if (event.stage, event.done) == ("slice", 2):
            raise KeyboardInterrupt

    for module in (layerwise, driver):
        monkeypatch.setattr(module, "open_layer", opened)
    with pytest.raises(KeyboardInterrupt):
        slice_to_folder(recipe, folder, progress=stop)
    assert entered == [0, 1, 2, 2, 1, 0, 0, 1, 2, 0, 1]  # forward, backward, plan, slice
    entered.clear()
    slice_to_folder(recipe, folder, progress=False)
    assert entered == [0, 1, 2, 2]


def test_a_damaged_step_is_said_and_the_next_run_starts_anew(recipe, own_cache, folder, uninterrupted):
    assert killed_after(12, recipe, folder)
    for step in (file for file in (own_cache / "unfinished").rglob("*") if file.is_file()):
        step.write_bytes(step.read_bytes()[:-1])
    assert re.search("is damaged .* Run the same command again", refused(slice_to_folder, recipe, folder))
    slice_to_folder(recipe, folder, progress=False)
    assert files_of(folder) == uninterrupted(recipe)


def test_a_run_does_not_continue_another_configurations(recipe, folder, uninterrupted):
    assert killed_after(12, recipe, folder)
    configure(rms_norm_eps=0.1)(Path(recipe.model))
    slice_to_folder(recipe, folder, progress=False)
    assert files_of(folder) == uninterrupted(recipe)


def test_a_journal_beyond_the_disk_budget_is_refused_before_any_work(recipe, folder, monkeypatch):
    monkeypatch.setenv(MAX_BYTES_VARIABLE, "100000")
    events = []
    message = refused(slice_to_folder, recipe, folder, progress=events.append)
    assert re.search(f"intermediate results need .* raise {MAX_BYTES_VARIABLE}", message)
    assert [event for event in events if event.stage != "fetch weights"] == []
    assert not folder.exists()


def test_the_reserved_bytes_hold_the_journal(case, recipe, own_cache, folder):
    sizes, config = [], case.original.config

    def watch(_):
        files = (own_cache / "unfinished").rglob("*")
        sizes.append(sum(file.stat().st_size for file in files if file.is_file()))

    slice_to_folder(recipe, folder, progress=watch)
    reserved = journal_bytes(config, recipe.calibration, torch.float32)
    headers = 2**16 * config.num_hidden_layers  # next to nothing beside those of a real model
    assert 0.6 * (reserved - headers) < max(sizes) < reserved


def test_an_estimate_is_of_the_model_and_grows_with_the_work(monkeypatch):
    monkeypatch.setattr(memory, "_speeds", lambda *sizes: (1e11, 1e11))
    sizes = {"hidden_size": 4096, "intermediate_size": 14336, "num_attention_heads": 32, "num_key_value_heads": 8}
    config = LlamaConfig(num_hidden_layers=32, vocab_size=128256, **sizes)  # Llama 3 8B
    calibration = CalibrationConfig("default", 32, 512)
    whole = estimate_stream(config, calibration, torch.bfloat16, 0.0)
    assert (whole.memory_bytes, whole.disk_bytes) == (4_651_507_712, 30_940_995_584)
    assert str(whole).startswith("estimate: 4.3 GiB of memory, 30.9 GB of disk, ")
    longer = estimate_stream(config, replace(calibration, sequences=64), torch.bfloat16, 0.0)
    assert 1.5 * whole.seconds < longer.seconds < 2 * whole.seconds
    config.num_hidden_layers = 64
    deeper = estimate_stream(config, calibration, torch.bfloat16, 0.0)
    assert deeper.memory_bytes == whole.memory_bytes  # that of one layer
    assert deeper.seconds > 1.5 * whole.seconds


@pytest.fixture
def words(recipe, folder):
    text = recipe.calibration.text
    options = ["--model", recipe.model, "--calibration", text, "--eval", text, "--sequences", "6", "--length", "24"]
    return ["slice", *options, "--dtype", "float32", "--device", "cpu", "--json", "--out", str(folder)]


def test_a_streamed_slice_tells_its_needs_before_and_its_result_after(words, folder, capsys):
    assert main([*words, "--stream", "--order", "one-shot"]) == 0
    captured = capsys.readouterr()
    assert captured.err.startswith("estimate: ")
    result = json.loads(captured.out)
    assert result["estimate"].keys() == {"memory_bytes", "disk_bytes", "seconds"}
    assert result["bytes"] == sum(file.stat().st_size for file in folder.iterdir())
    assert result["removed_fraction"] == pytest.approx(0.3, abs=0.05)


def test_a_slice_is_streamed_by_itself_where_memory_is_short_but_a_search_is_not(words, capsys, monkeypatch):
    monkeypatch.setenv(MEMORY_VARIABLE, "1")
    assert main([*words, "--order", "one-shot", "--ratios", "search"]) == 2
    assert "is free" in capsys.readouterr().err
    assert main([*words, "--order", "one-shot"]) == 0
    assert "estimate" in json.loads(capsys.readouterr().out)


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ("--order sequential", "use --order one-shot"),
        ("--method flap", "method flap needs other statistics, or all layers at once; use --method intraslice"),
        ("--samples 2", "leave samples out"),
        ("--length 600", "the model's maximum context length"),
        ("--recover distill", "recovery distill trains all layers at once; leave it out"),
        ("--ratios search", "--ratios search measures whole models"),
        ("--estimator auto", "--estimator auto measures whole models"),
        ("--device-map disk", "--stream requires --out FOLDER"),
    ],
)
def test_what_cannot_be_streamed_is_an_error_of_one_line(words, folder, capsys, options, reason):
    assert main([*words, "--stream", "--order", "one-shot", *options.split()]) == 2
    assert reason in capsys.readouterr().err
    assert not folder.exists()
