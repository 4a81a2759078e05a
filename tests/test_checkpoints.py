"""Checkpoints: what is saved is what is loaded, without the dense model; what is broken is refused with one line."""

from __future__ import annotations

import json

import pytest
import torch
from transformers import AutoModelForCausalLM

import intraslice
from intraslice import checkpoints
from intraslice.config import SliceConfig, UserError, finish
from intraslice.ratios import make_plan
from intraslice.slicing import slice_model


@pytest.fixture
def saved(family_case, tmp_path):
    plan = make_plan(family_case.stats.profile, SliceConfig(0.4, bias=1.0, order="one-shot"))
    model = finish(slice_model(family_case.loaded.model, plan, family_case.stats))
    folder = tmp_path / "sliced"
    checkpoints.save(model, family_case.loaded.tokenizer, folder, {"source": "tiny", "protocol": {}})
    return model, folder, family_case


def test_a_reloaded_model_is_the_same_model(saved):
    model, folder, case = saved
    reloaded, tokenizer, made = intraslice.load(folder)
    assert made == {"source": "tiny", "protocol": {}}
    assert tokenizer.get_vocab() == case.loaded.tokenizer.get_vocab()
    with torch.no_grad():
        assert torch.equal(reloaded(case.tokens).logits, model(case.tokens).logits)
    prompt = case.tokens[:1, :6]
    settings = {"max_new_tokens": 8, "do_sample": False, "attention_mask": torch.ones_like(prompt)}
    assert torch.equal(reloaded.generate(prompt, **settings), model.generate(prompt, **settings))


def test_the_file_is_as_small_as_the_model(saved):
    model, folder, _ = saved
    own = {tensor.data_ptr(): tensor.nbytes for tensor in model.state_dict().values()}  # tied ones count once
    size = (folder / checkpoints.WEIGHTS).stat().st_size
    assert sum(own.values()) <= size < sum(own.values()) + 20_000


def test_transformers_refuses_or_runs_it_but_never_fills_layers_with_random_numbers(saved):
    model, folder, case = saved
    with pytest.raises(ValueError, match="trust_remote_code"):
        AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=False)
    through_auto = AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=True)
    with torch.no_grad():
        assert torch.equal(through_auto(case.tokens).logits, model(case.tokens).logits)


def _truncate(folder):
    path = folder / checkpoints.WEIGHTS
    path.write_bytes(path.read_bytes()[:-100])


def _flip_a_byte(folder):
    path = folder / checkpoints.WEIGHTS
    data = bytearray(path.read_bytes())
    data[-5] ^= 1
    path.write_bytes(bytes(data))


def _edit(change):
    def tamper(folder):
        path = folder / checkpoints.RECORD
        record = json.loads(path.read_text())
        change(record)
        path.write_text(json.dumps(record))

    return tamper


@pytest.mark.parametrize(
    "tamper",
    [
        _truncate,
        _flip_a_byte,
        lambda folder: (folder / checkpoints.WEIGHTS).unlink(),
        lambda folder: (folder / checkpoints.RECORD).write_text("{"),
        _edit(lambda record: record.pop("layers")),
        _edit(lambda record: record["layers"].pop()),
        _edit(lambda record: record["layers"][0].update(neurons=7)),
        _edit(lambda record: record["layers"][0].update(kv_head=[0])),
        _edit(lambda record: record["layers"][0].update(frequency=[[99]])),
        _edit(lambda record: record["config"].update(model_type="gpt2")),
        _edit(lambda record: record.update(format=99)),
    ],
)
def test_a_broken_folder_is_refused_with_one_line(saved, tamper):
    _, folder, _ = saved
    tamper(folder)
    with pytest.raises(UserError) as refused:
        intraslice.load(folder)
    assert "\n" not in str(refused.value)


def test_nothing_is_overwritten_and_a_full_disk_leaves_nothing(saved, monkeypatch, tmp_path):
    model, folder, case = saved
    with pytest.raises(UserError, match="not empty"):
        checkpoints.save(model, case.loaded.tokenizer, folder, {})

    def full(*_, **__):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(checkpoints, "save_file", full)
    with pytest.raises(UserError, match="No space left"):
        checkpoints.save(model, case.loaded.tokenizer, tmp_path / "other", {})
    assert sorted(path.name for path in tmp_path.iterdir()) == ["sliced"]
