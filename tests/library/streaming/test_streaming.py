"""One layer in memory at a time: the bits of an ordinary slice, wherever the process is killed."""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path

import pytest
import torch

import intraslice
from intraslice.api import compress_loaded
from intraslice.core.cache import MAX_BYTES_VARIABLE
from intraslice.core.config import NO_RECOVERY
from intraslice.core.errors import UserError
from intraslice.pipeline import Pipeline
from intraslice.streaming import journal, shards
from intraslice.streaming.driver import slice_to_folder
from intraslice.streaming.weights import StreamedModel


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
    assert made == json.loads(json.dumps(expected.made))
    assert tokenizer.get_vocab() == expected.tokenizer.get_vocab()
    tensors, expected_tensors = model.state_dict(), expected.model.state_dict()
    assert tensors.keys() == expected_tensors.keys()
    assert [name for name, tensor in tensors.items() if not torch.equal(tensor, expected_tensors[name])] == []
    assert model.generation_config.to_dict() == expected.model.generation_config.to_dict()
    assert left_over(folder, own_cache) == []


@pytest.mark.parametrize("estimator", ["uniform", "output-error", pytest.param("fisher", marks=pytest.mark.slow)])
def test_the_plan_is_that_of_memory_for_every_estimator(tiny_case, recipe_for, folder, estimator):
    recipe = recipe_for(tiny_case("llama-gqa"), estimator=estimator)
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

        journal.os.replace = shards.os.replace = replace
        slice_to_folder(recipe, folder, progress=False)
        os._exit(0)
    return os.WIFSIGNALED(os.waitpid(process, 0)[1])


@pytest.mark.parametrize("renames", [pytest.param(3, marks=pytest.mark.slow), 4])  # a step renames two files at most
def test_a_killed_run_goes_on_to_the_same_bytes(tiny_case, recipe_for, own_cache, tmp_path, folder, renames):
    recipe = recipe_for(tiny_case("llama-gqa"))
    expected = tmp_path / "whole" / folder.name  # the model card has the folder's name
    slice_to_folder(recipe, expected, progress=False)
    kills = 0
    while kills < 20 and killed_after(renames * (kills > 0), recipe, folder):
        kills += 1
        assert left_over(folder, own_cache)
        assert not folder.exists()
    assert 4 <= kills < 20  # every run gets further than the one before
    assert files_of(folder) == files_of(expected)
    assert left_over(folder, own_cache) == []


def test_a_finished_layer_is_not_read_again(tiny_case, recipe_for, folder, monkeypatch):
    recipe, entered = recipe_for(tiny_case("llama-gqa")), []
    open_layer = StreamedModel.layer

    def layer(dense, index):
        entered.append(index)
        assert all(parameter.is_meta for parameter in dense.model.parameters())  # no other layer is in memory
        return open_layer(dense, index)

    def stop(event):
        if (event.stage, event.done) == ("slice", 2):
            raise KeyboardInterrupt

    monkeypatch.setattr(StreamedModel, "layer", layer)
    with pytest.raises(KeyboardInterrupt):
        slice_to_folder(recipe, folder, progress=stop)
    assert entered == [0, 1, 2, 2, 1, 0, 0, 1, 2, 0, 1]  # forward, backward, plan, slice
    entered.clear()
    slice_to_folder(recipe, folder, progress=False)
    assert entered == [0, 1, 2, 2]


def test_a_damaged_step_is_said_and_the_next_run_starts_anew(tiny_case, recipe_for, own_cache, tmp_path, folder):
    recipe = recipe_for(tiny_case("llama-gqa"))
    expected = tmp_path / "whole" / folder.name
    slice_to_folder(recipe, expected, progress=False)
    assert killed_after(12, recipe, folder)
    for step in (file for file in (own_cache / "unfinished").rglob("*") if file.is_file()):
        step.write_bytes(step.read_bytes()[:-1])
    with pytest.raises(UserError, match=r"is damaged .* Run the same command again"):
        slice_to_folder(recipe, folder, progress=False)
    slice_to_folder(recipe, folder, progress=False)
    assert files_of(folder) == files_of(expected)


def test_what_needs_more_than_a_layer_is_refused_with_the_reason(tiny_case, recipe_for, folder):
    case = tiny_case("llama-gqa")
    for reason, settings in {
        "method flap needs other statistics": {"method": "flap"},
        "the sequential order needs every sliced layer": {"order": "sequential"},
        "recovery distill trains all layers": {"recovery": "distill"},
    }.items():
        with pytest.raises(UserError, match=reason):
            slice_to_folder(recipe_for(case, **settings), folder, progress=False)
    assert recipe_for(case).slicing.recovery == NO_RECOVERY
    assert not folder.exists()


def test_a_journal_beyond_the_disk_budget_is_refused_before_any_work(tiny_case, recipe_for, folder, monkeypatch):
    recipe = recipe_for(tiny_case("llama-gqa"))
    monkeypatch.setenv(MAX_BYTES_VARIABLE, "100000")
    events = []
    with pytest.raises(UserError, match=f"intermediate results need .* raise {MAX_BYTES_VARIABLE}"):
        slice_to_folder(recipe, folder, progress=events.append)
    assert [event for event in events if event.stage != "fetch weights"] == []
    assert not folder.exists()


def test_a_run_does_not_continue_another_configurations(tiny_case, recipe_for, tmp_path, folder):
    recipe = recipe_for(tiny_case("llama-gqa"))
    assert killed_after(12, recipe, folder)
    file = Path(recipe.model) / "config.json"
    config = json.loads(file.read_text())
    file.write_text(json.dumps(config | {"rms_norm_eps": 0.1}))
    expected = tmp_path / "whole" / folder.name
    slice_to_folder(recipe, expected, progress=False)
    slice_to_folder(recipe, folder, progress=False)
    assert files_of(folder) == files_of(expected)
