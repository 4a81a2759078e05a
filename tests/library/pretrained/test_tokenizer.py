"""Tokenizers of untrusted models: which encode in this process, what happens to slow ones, and what is not loaded."""

import re
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import pytest
from file_formats import edit_json
from refusing import refused
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

from intraslice import token_windows
from intraslice.core.config import CalibrationConfig, EvaluationConfig
from intraslice.diagnostics.token_scores import compare_next_tokens, score_passage
from intraslice.evaluation.generation import prompt_tokens
from intraslice.loading import load_model
from intraslice.pretrained import tokenizer as bounds
from intraslice.pretrained.reader import Weights, read_tokenizer
from intraslice.pretrained.tokenizer import LLAMA3, QWEN2, encode
from intraslice.untrusted.process import Bounds

SLOW = "a*a*a*a*[^a ]"  # takes n^5 steps for a word of n letters "a"
TEXT = "aab <s> ab b aaab"
PHI4 = (
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+(?i:'s|'t|'re|'ve|'m|'ll|'d)?|"
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*(?i:'s|'t|'re|'ve|'m|'ll|'d)?|"
    r"\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)


def split(pattern: str) -> pre_tokenizers.Split:
    return pre_tokenizers.Split(Regex(pattern), "isolated")


def bpe(**options: Any) -> models.BPE:
    vocabulary = {"a": 0, "b": 1, " ": 2, "▁": 3, "aa": 4, "ab": 5, "<": 6, "s": 7, ">": 8}
    return models.BPE(vocabulary, [("a", "a"), ("a", "b")], **options)


def save(folder: Path, model: models.Model | None = None, **parts: Any) -> Path:
    """Write a tokenizer with the given parts into a folder."""
    tokenizer = Tokenizer(model or bpe())
    for name, part in parts.items():
        setattr(tokenizer, name, part)
    tokenizer.post_processor = processors.TemplateProcessing("<s> $A", special_tokens=[("<s>", 9)])
    tokenizer.add_special_tokens([AddedToken("<s>", normalized=False)])
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<s>").save_pretrained(folder)
    return folder


def read(folder: Path) -> PreTrainedTokenizerFast:
    return read_tokenizer(Weights(folder, "it"))


LINEAR = {
    "gpt2": {"pre_tokenizer": pre_tokenizers.ByteLevel(), "decoder": decoders.ByteLevel()},
    "smollm2": {"pre_tokenizer": pre_tokenizers.Sequence([pre_tokenizers.Digits(True), pre_tokenizers.ByteLevel()])},
    "llama2": {
        "normalizer": normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")]),
        "decoder": decoders.Sequence(
            [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
        ),
    },
    "gemma3": {
        "normalizer": normalizers.Replace(" ", "▁"),
        "pre_tokenizer": pre_tokenizers.Split(" ", "merged_with_previous"),
    },
} | {
    name: {"normalizer": normalizers.NFC(), "pre_tokenizer": pre_tokenizers.Sequence([split(pattern), bytes_])}
    for bytes_ in [pre_tokenizers.ByteLevel(use_regex=False)]
    for name, pattern in {"llama3": LLAMA3, "qwen2": QWEN2, "phi4": PHI4}.items()
}
SLOW_PARTS = {
    "pattern": {"pre_tokenizer": pre_tokenizers.Sequence([split("c+|d"), pre_tokenizers.ByteLevel(use_regex=False)])},
    "part-of-a-pattern": {"pre_tokenizer": split(r"\s*[\r\n]+")},
    "normaliser": {"normalizer": normalizers.Replace(Regex("c{2,}"), "c")},
    "growth": {"normalizer": normalizers.Sequence([normalizers.Replace("c", "dd"), normalizers.Replace("d", "cc")])},
    "prefix": {"normalizer": normalizers.Prepend("▁▁")},
    "bytes-of-bytes": {"normalizer": normalizers.Sequence([normalizers.ByteLevel()] * 2)},
    "many": {"normalizer": normalizers.Sequence([normalizers.Replace("c", "d")] * 200)},
    "word-piece": {"model": models.WordPiece({"a": 0, "##a": 1, "[UNK]": 2}, max_input_chars_per_word=10**9)},
    "unigram": {"model": models.Unigram([("a", 0.0), ("b", -1.0)], 0)},
    "dropout": {"model": bpe(dropout=0.0)},
}


@pytest.mark.parametrize("name", LINEAR)
def test_tokenizers_of_the_families_encode_in_this_process(name, tmp_path, monkeypatch):
    folder = save(tmp_path, **LINEAR[name])
    (folder / "trainer_state.json").write_bytes(bytes(5 * 10**6))  # nothing that a tokenizer reads
    tokenizer = read(folder)
    monkeypatch.setattr(bounds, "run_in_subprocess", lambda *_, **__: pytest.fail("another process"))
    for special in (False, True):
        assert encode(tokenizer, TEXT, special) == tokenizer(TEXT, add_special_tokens=special).input_ids


@pytest.mark.parametrize("name", SLOW_PARTS)
def test_others_encode_in_a_child_process_with_the_same_ids(name, tmp_path, monkeypatch):
    tokenizer, processes = read(save(tmp_path, **SLOW_PARTS[name])), []
    run = bounds.run_in_subprocess
    monkeypatch.setattr(bounds, "run_in_subprocess", lambda *args, **named: processes.append(1) or run(*args, **named))
    for special in (False, True):
        tokenizer.split_special_tokens = tokenizer._tokenizer.encode_special_tokens = special
        assert encode(tokenizer, TEXT, special) == tokenizer(TEXT, add_special_tokens=special).input_ids
        assert encode(tokenizer, TEXT, special) == encode(tokenizer, TEXT, special)  # remembered
    assert len(processes) == 2


def test_a_slow_tokenizer_is_stopped_wherever_text_is_encoded(folder, monkeypatch, tmp_path):
    tokenizer = Tokenizer(models.WordLevel({"a": 0, "<unk>": 1}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = split(SLOW)
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="<unk>").save_pretrained(folder)
    loaded, text = load_model(str(folder)), ("a" * 80 + " ") * 100
    (tmp_path / "text.txt").write_text(text)
    monkeypatch.setattr(bounds, "SECONDS", 1)
    calibration = CalibrationConfig(str(tmp_path / "text.txt"), 4, 32)
    model, tokenizer = loaded.model, loaded.tokenizer
    for work in (
        lambda: prompt_tokens(tokenizer, text),
        lambda: score_passage(model, model, tokenizer, text),
        lambda: compare_next_tokens(model, model, tokenizer, text),
        lambda: token_windows.calibration_tokens(tokenizer, calibration),
        lambda: token_windows.evaluation_tokens(tokenizer, EvaluationConfig(calibration.text, 128, 32)),
    ):
        assert re.search(r"the tokenizer of this model is too slow .*\(it takes more than \d s", refused(work))
        stopped = Mock(side_effect=ValueError("it takes more than 1 s"))  # the others would take as long
        monkeypatch.setattr(bounds, "run_in_subprocess", stopped)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        pytest.param({"decoder": {"type": "Replace", "pattern": {"Regex": "a*a*b"}, "content": ""}}, "decoder", id="r"),
        pytest.param({"decoder": {"type": "Replace", "pattern": {"String": "a"}, "content": "aa"}}, "decoder", id="s"),
        pytest.param({"model": {"type": "WordLevel", "vocab": {}, "unk_token": "x" * 2**25}}, "33,554,432", id="size"),
        pytest.param({"model": {"type": "WordLevel", "vocab": {"a" * 1025: 0}, "unk_token": ""}}, "1,024", id="token"),
    ],
)
def test_a_tokenizer_beyond_the_bounds_is_not_loaded(changes, words, tmp_path):
    folder = save(tmp_path)
    edit_json(folder / "tokenizer.json", **changes)
    assert re.search(f"it has no tokenizer that can be read .*{words}", refused(read, folder))


@pytest.mark.parametrize("file", ["tokenizer.json", "tokenizer_config.json"])
def test_what_takes_all_time_or_memory_to_load_takes_it_in_the_child(file, tmp_path, monkeypatch):
    """Added tokens are normalised at load, here by steps that double the letter "z" thirty times."""
    folder = save(tmp_path)
    double = {"type": "Replace", "pattern": {"String": "z"}, "content": "zz"}
    edit_json(folder / "tokenizer.json", normalizer={"type": "Sequence", "normalizers": [double] * 30})
    token = {"content": "z", "lstrip": False, "normalized": True, "rstrip": False, "single_word": False}
    token |= {"special": False}
    if file == "tokenizer.json":
        edit_json(folder / "tokenizer.json", added_tokens=[{"id": 10, **token}])
    else:
        edit_json(folder / file, added_tokens_decoder={"10": token})
    monkeypatch.setattr("intraslice.pretrained.reader.LOADING", Bounds(2**28, 1))
    monkeypatch.setattr("transformers.AutoTokenizer.from_pretrained", lambda *_, **__: pytest.fail("loaded here"))
    assert "it takes more than" in refused(read, folder)
