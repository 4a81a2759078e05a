"""What is asked of the Hub and fetched from it, and what it refuses."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import httpx
import huggingface_hub
import pytest
from huggingface_hub.errors import GatedRepoError, LocalEntryNotFoundError, RepositoryNotFoundError
from huggingface_hub.utils import filter_repo_objects

from intraslice.core.errors import UserError
from intraslice.loading import load_model
from intraslice.pretrained import memory, sources
from intraslice.pretrained.hub import fetched_for_others
from intraslice.pretrained.reader import Weights


def on_hub(folder: Path, parameters: int | None = 1000) -> SimpleNamespace:
    """What the Hub says of a repository with the files of a folder."""
    files = [SimpleNamespace(rfilename=file.name, size=file.stat().st_size) for file in folder.iterdir()]
    counted = parameters and SimpleNamespace(total=parameters)
    return SimpleNamespace(sha=folder.name, siblings=files, safetensors=counted)


@pytest.fixture
def hub(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[Exception], None]:
    """A Hub that answers, and has one model, `someone/tiny`; a function makes it fail instead."""
    failure: list[Exception] = []

    def serve(path: str, local_files_only: bool) -> str:
        if local_files_only:
            raise LocalEntryNotFoundError("not cached")
        if failure:
            raise failure[0]
        return path

    for module in (memory, sources):
        monkeypatch.setattr(module, "hub_is_reachable", lambda: True)
    monkeypatch.setattr(huggingface_hub, "model_info", lambda hub_id, files_metadata: on_hub(folder))
    monkeypatch.setattr(sources, "hf_hub_download", lambda hub_id, file, **options: serve(str(folder / file), False))
    monkeypatch.setattr(
        sources,
        "snapshot_download",
        lambda hub_id, local_files_only=False, **options: serve(str(folder), local_files_only),
    )
    return failure.append


def test_a_hub_id(hub):
    assert load_model("someone/tiny").source.startswith("someone/tiny from the Hugging Face Hub, commit ")


def test_a_load_looks_for_the_weights_once(hub, folder, monkeypatch):
    names: list[str] = []
    find_weights = sources.find_weights

    def counting(name: str) -> Weights | None:
        names.append(name)
        return find_weights(name)

    for module in (memory, sources):
        monkeypatch.setattr(module, "find_weights", counting)
    load_model(str(folder))  # on this disk
    load_model("someone/tiny")  # fetched
    load_model(str(folder), device_map="disk")
    assert names == [str(folder), "someone/tiny", str(folder)]


def test_what_the_hub_refuses(hub, refusal):
    answer = httpx.Response(403, request=httpx.Request("GET", "http://hub"))
    hub(GatedRepoError("gated", response=answer))
    assert "HF_TOKEN" in refusal("meta-llama/Llama-3.2-1B")


def test_what_the_hub_does_not_have(hub, refusal):
    answer = httpx.Response(404, request=httpx.Request("GET", "http://hub"))
    hub(RepositoryNotFoundError("none", response=answer))
    assert "no model 'someone/tiny'" in refusal("someone/tiny")


def test_a_download_that_breaks_off(hub, refusal):
    hub(OSError("connection reset"))
    assert "connection reset" in refusal("someone/tiny")


def test_a_foreign_model_is_refused_before_its_weights_arrive(hub, folder, monkeypatch, refusal):
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"model_type": "gpt2"}))
    monkeypatch.setattr(sources, "_cached_snapshot", lambda *given: None)
    monkeypatch.setattr(sources, "snapshot_download", lambda *given, **options: pytest.fail("downloaded"))
    assert "gpt2" in refusal("someone/tiny")


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
    fetched: list[set[str]] = []

    def download(hub_id: str, local_files_only: bool = False, **options: Any) -> str:
        if local_files_only:
            raise LocalEntryNotFoundError("not cached")
        names = {file.name for file in folder.iterdir()}
        fetched.append(set(filter_repo_objects(names, allow_patterns=options["allow_patterns"])))
        return str(folder)

    monkeypatch.setattr(sources, "snapshot_download", download)
    needed_bytes = sum((folder / name).stat().st_size for name in needed)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(folder.parent / "hub"))
    with fetched_for_others("someone/tiny", needed_bytes - 1):
        assert f"someone/tiny takes {needed_bytes / 1e6:,.0f} MB of disk" in refusal("someone/tiny")
    assert fetched == []
    with fetched_for_others("someone/tiny", needed_bytes):
        sources.fetch_weights("someone/tiny")
    assert fetched == [needed]


def test_a_model_without_a_tokenizer_that_is_read_is_refused_before_its_weights_arrive(
    hub, folder, monkeypatch, refusal
):
    fetched: list[list[str]] = []

    def download(hub_id: str, local_files_only: bool = False, **options: Any) -> str:
        if local_files_only:
            raise LocalEntryNotFoundError("not cached")
        fetched.append(options["allow_patterns"])
        return str(folder)

    monkeypatch.setattr(sources, "snapshot_download", download)
    (folder / "tokenizer.json").rename(folder / "vocab.json")
    assert "vocab.json and merges.txt" in refusal("someone/tiny")
    assert fetched == []
    (folder / "merges.txt").write_text("#version: 0.2\n")  # an older form, from which transformers makes one
    sources.fetch_weights("someone/tiny")
    assert {"vocab.json", "merges.txt"} <= set(fetched[0])
    assert (folder.parent.parent / "refs" / "main").read_text() == folder.name


def test_a_model_is_counted_without_reading_its_headers(hub, folder, monkeypatch):
    weights = folder / "model.safetensors"
    weights.write_bytes((2**22).to_bytes(8, "little") + bytes(2**22))
    assert memory.estimate_memory("someone/tiny").parameters == 1000
    monkeypatch.setattr(huggingface_hub, "model_info", lambda hub_id, files_metadata: on_hub(folder, None))
    assert memory.estimate_memory("someone/tiny").parameters == weights.stat().st_size // 2
    weights.unlink()
    with pytest.raises(UserError, match="has no safetensors weights"):
        memory.estimate_memory("someone/tiny")


@pytest.mark.parametrize("cached", [True, False])
def test_weights_of_the_hub_that_are_cut_short_are_named(hub, folder, refusal, monkeypatch, cached):
    file = folder / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-1])
    if cached:
        monkeypatch.setattr(sources, "snapshot_download", lambda *given, **options: str(folder))
    assert "model.safetensors is shorter than its header says" in refusal("someone/tiny")
