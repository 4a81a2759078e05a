"""Folders and GGUF files: what is read, and every way in which one can be missing, broken or foreign."""

import json
import os
from collections.abc import Callable
from pathlib import Path

import gguf
import pytest
import torch
from file_formats import configure
from refusing import refused
from safetensors.torch import save_file
from tiny_models import FAMILIES

from intraslice.check import check_model
from intraslice.core.config import CalibrationConfig
from intraslice.core.errors import first_line
from intraslice.loading import load_model
from intraslice.pretrained.reader import Weights, read_config, weight_files


@pytest.mark.parametrize("family", ["llama-gqa", "phi"])
def test_a_folder_gives_the_model_that_was_saved(family, tmp_path, word_tokenizer):
    dense = FAMILIES[family]()
    dense.save_pretrained(tmp_path / "it")
    word_tokenizer(["word0", "word1"]).save_pretrained(tmp_path / "it")
    loaded = load_model(str(tmp_path / "it"))
    tokens = torch.arange(4, 44).view(2, 20)
    torch.testing.assert_close(loaded.model(tokens).logits, dense(tokens).logits, rtol=1e-4, atol=1e-4)
    assert loaded.tokenizer.decode([4, 5]) == "word0 word1"
    assert loaded.source == f"the folder {tmp_path / 'it'}"


def test_a_tokenizer_without_padding_gets_some(folder, word_tokenizer):
    tokenizer = word_tokenizer()
    tokenizer.pad_token = None
    tokenizer.save_pretrained(folder)
    loaded = load_model(str(folder))
    assert loaded.tokenizer.pad_token == "</s>"
    assert loaded.model.generation_config.pad_token_id == 2


def test_a_tokenizer_of_sentencepiece_alone_is_enough_and_a_long_piece_of_it_refused(folder, tmp_path, refusal):
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
    from sentencepiece import sentencepiece_model_pb2

    proto = sentencepiece_model_pb2.ModelProto()
    file = folder / "tokenizer.model"
    proto.ParseFromString(file.read_bytes())
    proto.pieces[-1].piece = "x" * 2000
    file.write_bytes(proto.SerializeToString())
    assert "more than 1,024 characters" in refusal(folder)


def test_a_tokenizer_of_another_model_or_none(folder, word_tokenizer, refusal):
    word_tokenizer([f"word{index}" for index in range(300)]).save_pretrained(folder)
    message = refusal(folder)
    assert "303" in message
    assert "256 embeddings" in message
    remove("tokenizer*")(folder)
    assert "put tokenizer.json or tokenizer.model" in refusal(folder)


def test_pickled_weights_are_not_read(folder, refusal):
    class Bomb:
        def __reduce__(self):
            return (Path.touch, (folder / "exploded",))

    (folder / "model.safetensors").unlink()
    torch.save({"bomb": Bomb()}, folder / "pytorch_model.bin")
    assert "safetensors" in refusal(folder)
    assert not (folder / "exploded").exists()


def test_code_in_a_folder_is_not_run(folder):
    (folder / "modeling.py").write_text(f"open({str(folder / 'ran')!r}, 'w')\nclass Mine: ...")
    configure(auto_map={"AutoModelForCausalLM": "modeling.Mine", "AutoConfig": "modeling.Mine"})(folder)
    load_model(str(folder))
    assert not (folder / "ran").exists()


def without_a_shard(folder: Path) -> None:
    index = {"weight_map": {"lm_head.weight": "model-00001-of-00001.safetensors"}}
    (folder / "model.safetensors").unlink()
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))


def remove(pattern: str) -> Callable[[Path], None]:
    return lambda folder: [file.unlink() for file in folder.glob(pattern)]


def write(text: str, file: str = "config.json") -> Callable[[Path], None]:
    return lambda folder: (folder / file).write_text(text)


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (remove("*"), "has no "),
        (remove("config.json"), "has no readable configuration"),
        (remove("model.safetensors"), "pickled .bin files are not read"),
        (write("x", "model.safetensors"), "truncated"),
        (lambda folder: os.truncate(folder / "model.safetensors", 100_000), "is shorter than its header says"),
        (without_a_shard, ""),
        (configure(model_type="gpt2"), "'gpt2' cannot be sliced: expected one of llama"),
        (configure(model_type="gemma3"), "use a Gemma 3 for text only"),
        (configure(num_hidden_layers=4), "has 3 layers, expected 4"),
        (configure(hidden_size=66), "fetch it again"),
        (configure(quantization_config={"quant_method": "gptq", "bits": 4}), "use the unquantised"),
        *((write(text), "config.json is not a JSON object") for text in ("", "{", "[]")),
        (write('{"model_type": "nonsense"}'), "'nonsense' cannot be sliced"),
        (write('{"vocab_size": 3}'), "has no model_type"),
    ],
)
def test_what_is_broken_or_missing_is_refused_in_one_line_when_loaded_and_when_checked(folder, spoil, words, refusal):
    spoil(folder)
    for message in (refusal(folder), refused(check_model, str(folder), CalibrationConfig())):
        assert words in message
        assert str(folder) in message or "cannot be sliced" in message


def test_a_device_that_is_not_there(folder, refusal):
    assert "try 'cpu'" in refusal(folder, device="cuda:99")


def test_the_index_does_not_speak_for_a_whole_file(folder):
    """transformers takes the whole file where there are both, so that is the one that is looked at."""
    save_file({"model.norm.weight": torch.zeros(54)}, folder / "other.safetensors")
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"a": "other.safetensors"}}))
    assert weight_files(folder) == [folder / "model.safetensors"]


@pytest.mark.parametrize(
    ("message", "said"),
    [
        ("no file model.safetensors in /somewhere/cache/x/y", "no file model.safetensors in y"),
        ("'/home/me/a/config.json' is not JSON", "'config.json' is not JSON"),
        (r"C:\Users\me\config.json is not JSON", "config.json is not JSON"),
        ("see https://huggingface.co/docs/hub and a/b/c", "see https://huggingface.co/docs/hub and a/b/c"),
        ("", "OSError"),
    ],
)
def test_reasons_name_files_but_not_where_they_lie(message, said):
    assert first_line(OSError(message)) == said


def test_the_configuration_of_gemma_3_is_read_from_gguf(tmp_path):
    """The file names the family `gemma3`, without the windows and rotary bases, which the family fixes."""
    writer = gguf.GGUFWriter(tmp_path / "tiny.gguf", "gemma3")
    fields = {"block_count": 7, "embedding_length": 32, "feed_forward_length": 48, "context_length": 64}
    heads = {"head_count": 2, "head_count_kv": 1, "key_length": 16, "value_length": 16, "sliding_window": 8}
    for field, value in {**fields, **{f"attention.{name}": value for name, value in heads.items()}}.items():
        writer.add_uint32(f"gemma3.{field}", value)
    writer.add_layer_norm_rms_eps(1e-6)
    writer.add_rope_freq_base(1e6)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.close()
    config = read_config(Weights(tmp_path, "it", "tiny.gguf"))
    assert config.model_type == "gemma3_text"
    assert config.layer_types == ["sliding_attention"] * 5 + ["full_attention", "sliding_attention"]
    bases = {kind: rope["rope_theta"] for kind, rope in config.rope_parameters.items()}
    assert (config.sliding_window, bases) == (8, {"sliding_attention": 1e4, "full_attention": 1e6})
