"""Checkpoints: what is saved is what is loaded, without the dense model; what is broken is refused with one line.

Every family, and both ways of slicing that make modules of their own kind.
"""

import copy
import json
import shutil
from pathlib import Path
from unittest.mock import Mock

import pytest
import torch
from opened import MADE
from refusing import refused
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

import intraslice
from intraslice.checkpoints import format as checkpoint_format

# Written by an earlier commit in the format that `save` still writes, with the logits of that day.
SAVED_BEFORE = Path(__file__).parent / "saved_before"


@pytest.fixture
def saved_folder(opened, tmp_path):
    return Path(shutil.copytree(opened.folder, tmp_path / "sliced"))


@pytest.mark.parametrize("method", ["intraslice", "crossmodule"])
def test_a_folder_saved_long_ago_still_opens(method):
    folder = SAVED_BEFORE / method
    expected = load_file(folder / "logits.safetensors")
    model, tokenizer, made = intraslice.load(folder)
    assert made == MADE
    assert tokenizer("w4 w31 unheard")["input_ids"] == [4, 31, 3]
    through_auto = [AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=trust) for trust in (None, True)]
    with torch.no_grad():
        for reopened in (model, *through_auto):
            torch.testing.assert_close(reopened(expected["tokens"]).logits, expected["logits"], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("file", ["model.safetensors", "config.json"])
def test_a_folder_without_a_record_is_read_but_must_be_whole(saved_folder, file):
    """As transformers' own `save_pretrained` leaves it: nothing tells that a value was changed, but what is absent."""
    (saved_folder / checkpoint_format.RECORD).unlink()
    assert checkpoint_format.is_checkpoint(saved_folder)
    assert intraslice.load(saved_folder)[2] == MADE
    tensors = load_file(saved_folder / checkpoint_format.WEIGHTS)
    if file == "config.json":
        _edit(lambda config: config["layers"][0].update(neurons=7))(saved_folder)
    else:
        del tensors["model.layers.1.mlp.down_proj.weight"]
        save_file(tensors, saved_folder / checkpoint_format.WEIGHTS, metadata={"format": "pt"})
    assert "not a complete sliced checkpoint" in refused(intraslice.load, saved_folder)


def _rewrite(change, file=checkpoint_format.WEIGHTS):
    return lambda folder: (folder / file).write_bytes(change((folder / file).read_bytes()))


def _edit(change, file=checkpoint_format.CONFIG):
    def changed(content):
        change(record := json.loads(content))
        return json.dumps(record).encode()

    return _rewrite(changed, file)


@pytest.mark.parametrize(
    "tamper",
    [
        _rewrite(lambda content: content[:-100]),
        _rewrite(lambda content: content[:-5] + bytes([content[-5] ^ 1]) + content[-4:]),
        lambda folder: (folder / checkpoint_format.WEIGHTS).unlink(),
        lambda folder: (folder / checkpoint_format.RECORD).write_text("{"),
        lambda folder: (folder / checkpoint_format.CONFIG).unlink(),
        _edit(lambda config: config.pop("layers")),
        _edit(lambda config: config["layers"].pop()),
        _edit(lambda config: config["layers"][0].update(neurons=7)),
        _edit(lambda config: config["layers"][0].update(kv_head=[5])),
        _edit(lambda config: config["layers"][0].update(shortcuts=[[1, 1]])),
        _edit(lambda config: config["layers"][0].update(scale=0.1)),  # every shape as it should be
        _edit(lambda config: config["layers"][0].update(frequency=[[99]])),
        _edit(lambda config: config["dense"].update(model_type="gpt2")),
        _edit(lambda record: record["record"].update(source="another model"), checkpoint_format.RECORD),
        _edit(lambda record: record.update(format=99), checkpoint_format.RECORD),
    ],
)
def test_a_broken_folder_is_refused_with_one_line(saved_folder, tamper):
    tamper(saved_folder)
    refused(intraslice.load, saved_folder)


def test_nothing_is_overwritten_and_a_full_disk_leaves_nothing(saved_folder, monkeypatch, tmp_path):
    model, tokenizer, _ = intraslice.load(saved_folder)
    assert "not empty" in refused(checkpoint_format.save, model, tokenizer, saved_folder, {})
    monkeypatch.setattr(checkpoint_format, "save_file", Mock(side_effect=OSError(28, "No space left on device")))
    assert "No space left" in refused(checkpoint_format.save, model, tokenizer, tmp_path / "other", {})
    assert sorted(path.name for path in tmp_path.iterdir()) == ["sliced"]


def test_all_may_read_the_files_generation_configs_stay_and_no_link_is_replaced(saved_folder, tmp_path):
    assert len({file.stat().st_mode for file in saved_folder.iterdir()}) == 1
    model, tokenizer, made = intraslice.load(saved_folder)
    model.generation_config.update(temperature=0.9, top_p=0.6, pad_token_id=3)  # which do nothing without sampling
    checkpoint_format.save(model, tokenizer, tmp_path / "again", made)
    assert intraslice.load(tmp_path / "again")[0].generation_config.temperature == 0.9
    (tmp_path / "empty").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "empty")
    for folder in (tmp_path / "link", Path("/proc")):
        assert "name a new folder inside it" in refused(checkpoint_format.require_free, folder)


def test_a_head_of_its_own_is_saved_whatever_the_configuration_says(case, tmp_path):
    original = copy.deepcopy(case.original)
    original.lm_head.weight = torch.nn.Parameter(torch.randn_like(original.lm_head.weight))
    original.config.tie_word_embeddings = True
    prepared = intraslice.prepare_model(original, case.loaded.tokenizer)
    checkpoint_format.save(prepared.model, prepared.tokenizer, tmp_path / "model", {})
    reloaded = intraslice.load(tmp_path / "model")[0]
    assert torch.equal(reloaded.lm_head.weight, original.lm_head.weight)
    assert intraslice.load_model(str(tmp_path / "model")).source.endswith("sliced")
