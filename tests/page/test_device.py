"""Models for visitors' devices: the WebAssembly files, GGUF files that all share, and the routes that serve both."""

import asyncio
import hashlib
import io
import json
import math
import shutil
import subprocess
import tarfile
from collections import Counter
from collections.abc import Awaitable, Callable
from pathlib import Path
from types import SimpleNamespace

import httpx
import pytest
from starlette.applications import Starlette
from starlette.testclient import TestClient
from tiny_page import SOMEBODY, in_job

from components import limits
from components.compare import device_panel
from components.device import files as files_module
from components.device import wllama
from components.device.files import ModelFiles, file_name
from components.device.routes import ENGINE, MODELS, routes
from components.state import request
from components.state.request import DENSE
from intraslice.__main__ import main
from intraslice.core.errors import UserError
from intraslice.pretrained.wheels import wheels_folder

CONTENT = {"index.js": b"export class Wllama {}", "wllama.wasm": b"\0asm"}


@pytest.fixture
def engine(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> SimpleNamespace:
    """Other WebAssembly files, and a cache without them; `npm` and `cdn` say what each way has."""
    monkeypatch.setenv("INTRASLICE_CACHE", str(tmp_path / "cache"))
    pinned = {name: (wllama.FILES[name][0], hashlib.sha256(data).hexdigest()) for name, data in CONTENT.items()}
    monkeypatch.setattr(wllama, "FILES", pinned)
    ways = SimpleNamespace(npm=dict(CONTENT), cdn=dict(CONTENT), calls=[])

    def way(name: str):
        def write(home: Path) -> None:
            ways.calls.append(name)
            if (content := getattr(ways, name)) is None:
                raise httpx.ConnectError(f"no {name}")
            for file, data in content.items():
                (home / file).write_bytes(data)

        return write

    monkeypatch.setattr(wllama, "_from_npm", way("npm"))
    monkeypatch.setattr(wllama, "_from_cdn", way("cdn"))
    return ways


@pytest.fixture
def written(monkeypatch: pytest.MonkeyPatch, engine: SimpleNamespace) -> list[object]:
    """The models of which a file was written; a tiny model's tokenizer is none that llama.cpp has."""
    models: list[object] = []

    def write(model, tokenizer, path, kind, name, progress) -> None:
        models.append(model)
        path.write_bytes(b"GGUF" + bytes([len(models)]) * 1000)

    monkeypatch.setattr(files_module, "require_deci_layers", lambda *_: None)
    monkeypatch.setattr(files_module, "write_gguf", write)
    wllama.fetch()
    return models


def test_the_files_are_fetched_once_and_again_if_they_are_damaged(engine) -> None:
    assert not wllama.is_fetched()
    home = wllama.fetch()
    assert home.parent == wheels_folder()  # which the cache never removes
    assert wllama.is_fetched()
    wllama.fetch()
    assert engine.calls == ["npm"]
    (home / "index.js").write_bytes(b"something else")
    wllama.fetch()
    assert (home / "index.js").read_bytes() == CONTENT["index.js"]


def test_a_package_that_is_not_the_pinned_one_is_not_kept_and_the_command_says_so(engine, capsys) -> None:
    engine.npm = {**CONTENT, "index.js": b"something else"}
    wllama.fetch()
    assert engine.calls == ["npm", "cdn"]
    shutil.rmtree(wllama.folder())
    engine.cdn = None
    assert main(["device", "--fetch"]) == 2
    assert "could not be fetched: index.js: wrong SHA-256; no cdn. Connect the server" in capsys.readouterr().err
    assert not wllama.is_fetched()


def test_npm_unpacks_the_two_files_alone_and_runs_nothing(monkeypatch, tmp_path) -> None:
    def run(command, cwd, **_: object) -> SimpleNamespace:
        assert "--ignore-scripts" in command
        with tarfile.open(cwd / "wllama.tgz", "w:gz") as archive:
            for path in ("evil.js", *(path for path, _ in wllama.FILES.values())):
                (content := tarfile.TarInfo(f"package/{path}")).size = len(path)
                archive.addfile(content, io.BytesIO(path.encode()))
        return SimpleNamespace(stderr="", stdout="")

    monkeypatch.setattr(shutil, "which", lambda name: f"/usr/bin/{name}")
    monkeypatch.setattr(subprocess, "run", run)
    wllama._from_npm(tmp_path)
    assert {file.name for file in tmp_path.iterdir()} == {*wllama.FILES, "wllama.tgz"}
    assert (tmp_path / "index.js").read_bytes() == b"esm/index.js"


def test_the_command_fetches_them_and_says_where_they_are(engine, capsys) -> None:
    assert main(["device", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["fetched"] is False
    assert main(["device", "--fetch"]) == 0
    assert "3.13.0 (MIT)" in capsys.readouterr().out


def test_all_who_want_the_same_setting_share_its_files(session, tiny, written) -> None:
    files = ModelFiles()
    first = in_job(session, files.prepare, session, tiny)
    assert in_job(session, files.prepare, session, tiny.with_settings(cap=50)) != first
    assert in_job(session, files.prepare, session, tiny) == first
    dense, sliced = session.calibrated(tiny).loaded.model, in_job(session, session.slice, tiny)
    assert written[:2] == [dense, sliced]
    assert len(written) == 3  # the dense model once
    assert [file.path.name for file in first] == [file_name(tiny, DENSE), file_name(tiny, "intraslice")]
    path, size, sha256 = files.find(first[1].path.name)
    assert (size, sha256) == (path.stat().st_size, hashlib.sha256(path.read_bytes()).hexdigest())
    (only,) = in_job(session, files.prepare, session, tiny.with_settings(sparsity=0))
    assert only == first[0]


def test_a_file_has_another_name_if_anything_is_different(tiny) -> None:
    requests = [tiny.with_settings(**changes) for changes in ({}, {"sparsity": 31}, {"seed": 7}, {"cap": 70})]
    assert len({file_name(request, "intraslice") for request in requests}) == 4
    assert len({file_name(request, DENSE) for request in requests}) == 1
    assert len({file_name(tiny, DENSE, file_type) for file_type in files_module.FILE_TYPES}) == 2


def test_loading_a_model_names_its_files_anew_and_is_no_other_setting(session, tiny, monkeypatch) -> None:
    monkeypatch.setattr(request, "_identities", {})
    before = json.loads(device_panel.describe(session, tiny))
    tiny.calibration.note_identity("loaded")
    after, other = (json.loads(device_panel.describe(session, tiny.with_settings(sparsity=p))) for p in (30, 31))
    assert before["sliced"]["url"] != after["sliced"]["url"]
    assert before["digest"] == after["digest"] != other["digest"]


def test_old_files_give_way_and_are_written_again(session, tiny, written, monkeypatch) -> None:
    monkeypatch.setattr(limits, "DEVICE_FILE_SECONDS", -1.0)
    monkeypatch.setattr(files_module, "approximate_bytes", lambda *_: 2**15)
    monkeypatch.setenv("INTRASLICE_MAX_DEVICE_FILES", str(2**16))  # two files
    files = ModelFiles()
    first = in_job(session, files.prepare, session, tiny)
    for sparsity in (20, 40):
        given = in_job(session, files.prepare, session, tiny.with_settings(sparsity=sparsity))
        assert all(files.find(file.path.name) for file in given)
    assert files.find(first[1].path.name) is None
    count = len(written)
    in_job(session, files.prepare, session, tiny)
    assert len(written) > count


def test_the_routes_serve_ranges_with_a_strong_etag_and_nothing_else(session, tiny, written) -> None:
    files = ModelFiles()
    dense, _ = in_job(session, files.prepare, session, tiny)
    client = TestClient(Starlette(routes=list(routes(files))))
    address = f"/{MODELS}{dense.path.name}"
    whole = client.get(address)
    assert whole.content == dense.path.read_bytes()
    etag = whole.headers["etag"]
    assert etag == f'"{dense.sha256[:32]}"'
    part = client.get(address, headers={"range": "bytes=4-9", "if-range": etag})
    assert (part.status_code, part.content) == (206, whole.content[4:10])
    assert client.get(address, headers={"if-none-match": etag}).status_code == 304
    assert client.get(f"/{ENGINE}index.js").content == CONTENT["index.js"]
    assert client.get(f"/{ENGINE}wllama.wasm").headers["content-type"] == "application/wasm"
    for path in (f"{MODELS}{'0' * 32}.gguf", f"{MODELS}..%2f..%2fetc%2fpasswd", f"{ENGINE}package.json"):
        assert client.get(f"/{path}").status_code == 404


ATTACKER, CLASS = "10.0.0.1", "10.0.0.2"


@pytest.fixture
def crowd(session, tiny, written) -> Callable[..., Awaitable[list[asyncio.Task[bool]]]]:
    """Begins downloads of a file whose clients take nothing until an event; each returns whether all of it came."""
    files = ModelFiles()
    dense, _ = in_job(session, files.prepare, session, tiny)
    app = Starlette(routes=list(routes(files)))
    scope = {"type": "http", "method": "GET", "path": f"/{MODELS}{dense.path.name}", "headers": [], "query_string": b""}

    async def download(address: str, until: asyncio.Event, has_begun: asyncio.Event) -> bool:
        async def send(message: dict) -> None:
            nonlocal received
            if message["type"] == "http.response.body":
                has_begun.set()
                await until.wait()
            received += len(message.get("body", b""))

        received = 0
        await app(scope | {"client": (address, 1)}, asyncio.Event().wait, send)
        return received == dense.size

    async def begin(address: str, count: int, until: asyncio.Event) -> list[asyncio.Task[bool]]:
        have_begun = [asyncio.Event() for _ in range(count)]
        tasks = [asyncio.create_task(download(address, until, event)) for event in have_begun]
        await asyncio.gather(*(event.wait() for event in have_begun))
        return tasks

    return begin


@pytest.mark.parametrize("address", [CLASS, ATTACKER])
def test_a_class_downloads_at_once_while_somebody_holds_many_slow_downloads(address, crowd, monkeypatch) -> None:
    """Also where that is somebody at the address of the class."""
    monkeypatch.setattr(limits, "SLOW_SECONDS", 0.0)

    async def attack() -> None:
        begin, end = asyncio.Event(), asyncio.Event()
        slow = await crowd(ATTACKER, 160, end)
        students = await crowd(address, 60, begin)
        begin.set()
        assert all(await asyncio.gather(*students))
        end.set()
        assert Counter(await asyncio.gather(*slow)) == {False: 20, True: 140}  # no more than had to give way

    asyncio.run(attack())


def test_places_for_downloads_are_shared_among_addresses(crowd, monkeypatch) -> None:
    """One at work gives way to those of an address with fewer, and to none of its own."""
    monkeypatch.setenv("INTRASLICE_MAX_DOWNLOADS", "4")
    monkeypatch.setattr(limits, "SLOW_SECONDS", math.inf)

    async def meet() -> list[int]:
        end = asyncio.Event()
        groups = [await crowd(address, 4, end) for address in (ATTACKER, ATTACKER, CLASS, "")]  # "" is nobody's
        end.set()
        return [sum(await asyncio.gather(*group)) for group in groups]

    assert asyncio.run(meet()) == [1, 0, 1, 2]


def test_the_page_is_told_what_a_setting_needs_and_what_is_wrong(session, tiny, written, monkeypatch) -> None:
    before = json.loads(device_panel.describe(session, tiny))
    plan = session.plan(tiny)
    assert before["sliced"]["bytes"] == files_module.approximate_bytes(plan.parameters_sliced, "q8_0")
    assert not before["isAnswer"]
    files = ModelFiles()
    *_, last = device_panel.prepare(session, files, tiny, "q8_0", SOMEBODY)
    described = json.loads(last["view"])
    assert described["isAnswer"]
    for name in ("dense", "sliced"):
        found = files.find(described[name]["url"].removeprefix(MODELS))
        assert found.size == described[name]["bytes"] == found.path.stat().st_size
    assert "sliced" not in json.loads(device_panel.describe(session, tiny.with_settings(sparsity=0)))

    first, second = (device_panel.prepare(session, ModelFiles(), tiny, "q8_0", SOMEBODY) for _ in range(2))
    assert {*next(first), *next(second)} == {"status"}
    assert not any("view" in step for step in first)  # stopped in the browser, and asked again: the second answers
    *_, last = second
    assert json.loads(last["view"])["problem"] == ""

    def move(*_: object) -> None:  # while the files are written
        session.jobs.set_view(SOMEBODY, request=tiny.with_settings(sparsity=40))

    monkeypatch.setattr(files_module, "require_deci_layers", move)
    *_, last = device_panel.prepare(session, ModelFiles(), tiny, "q8_0", SOMEBODY)
    assert json.loads(last["view"])["problem"].startswith("The settings changed")

    def refuse(*_: object) -> None:
        raise UserError("llama.cpp does not support it")

    monkeypatch.setattr(files_module, "require_deci_layers", refuse)
    *_, last = device_panel.prepare(session, ModelFiles(), tiny, "q8_0", SOMEBODY)
    assert json.loads(last["view"])["problem"] == "llama.cpp does not support it."
    assert device_panel.describe_if_chosen(session, tiny, "server", "q8_0", SOMEBODY) == {"__type__": "update"}
