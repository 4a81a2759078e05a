"""Names, and the Hub: what it gives and what it refuses."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import httpx
import pytest
from huggingface_hub.errors import GatedRepoError, LocalEntryNotFoundError, RepositoryNotFoundError

from intraslice.loading import DEFAULT, SUGGESTED_MODELS, load_model
from intraslice.pretrained import memory, sources
from intraslice.pretrained.reader import Weights


@pytest.mark.parametrize("name", ["no/such/thing", "./nothing", "", "some one/model", "notamodel.txt"])
def test_names_that_are_nothing(name, own_cache, refusal):
    assert "default" in refusal(name)


def test_a_hub_id_without_the_hub(own_cache, refusal):
    message = refusal("someone/some-model")
    assert "the Hub does not answer" in message
    assert "default" in message


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
        monkeypatch.setattr(module, "hub_answers", lambda: True)
    counted = SimpleNamespace(parameter_count={"F32": 1000})
    monkeypatch.setattr(memory, "get_safetensors_metadata", lambda hub_id: counted)
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


def test_suggestions_begin_with_the_default():
    assert next(iter(SUGGESTED_MODELS)) == DEFAULT
    assert len(SUGGESTED_MODELS) == 8
