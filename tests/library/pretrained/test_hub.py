"""Whether the Hub answers, asked of small servers on this machine; and which fetched models stay."""

import os
import socket
import threading
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from types import SimpleNamespace

import pytest
from huggingface_hub import constants
from refusing import refused

from intraslice.pretrained import hub


@pytest.fixture(autouse=True)
def asked_afresh(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(hub, "_answers", {})


@pytest.mark.parametrize(("status", "answers"), [(200, True), (403, False), (502, False)])
def test_what_counts_as_an_answer(status, answers, monkeypatch):
    class Handler(BaseHTTPRequestHandler):
        def do_HEAD(self) -> None:
            self.send_response(status)
            self.end_headers()

        def log_message(self, *given: object) -> None:
            """Not a word."""

    server = HTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    monkeypatch.setattr(constants, "ENDPOINT", f"http://127.0.0.1:{server.server_port}")
    monkeypatch.setattr(hub, "TIMEOUT", 60.0)
    try:
        assert hub.hub_is_reachable() is answers
    finally:
        server.shutdown()
        server.server_close()


def test_a_silent_hub_is_not_waited_for(monkeypatch):
    with socket.create_server(("127.0.0.1", 0)) as silent:
        monkeypatch.setattr(constants, "ENDPOINT", f"http://127.0.0.1:{silent.getsockname()[1]}")
        monkeypatch.setattr(hub, "TIMEOUT", 0.3)
        assert not hub.hub_is_reachable()
        assert not hub.hub_is_reachable()
        monkeypatch.setattr(hub.threading, "Thread", lambda **_: pytest.fail("asked again"))
        assert not hub.hub_is_reachable()


def test_a_no_is_forgotten_after_a_while_and_a_yes_is_not(monkeypatch):
    now, statuses = [1000.0], [503, 200, 503]
    session = SimpleNamespace(head=lambda *_, **__: SimpleNamespace(status_code=statuses.pop(0)))
    monkeypatch.setattr(hub.huggingface_hub, "get_session", lambda: session)
    monkeypatch.setattr(hub.time, "monotonic", lambda: now[0])
    answers = []
    for seconds in (0, 29, 1, 3600):
        now[0] += seconds
        answers.append(hub.hub_is_reachable())
    assert answers == [False, False, True, True]
    assert statuses == [503]


def test_offline_is_not_asked(monkeypatch):
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(hub.huggingface_hub, "get_session", lambda: pytest.fail("asked"))
    assert not hub.hub_is_reachable()


@pytest.fixture
def fetch(monkeypatch, tmp_path) -> Callable[[str], None]:
    """Writes a model of a hundred bytes into an empty cache, as the Hub's library does."""
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))

    def write(name: str) -> None:
        folder, commit = tmp_path / f"models--{name.replace('/', '--')}", "a" * 40
        for part in ("blobs", "refs", f"snapshots/{commit}"):
            (folder / part).mkdir(parents=True, exist_ok=True)
        (folder / "refs/main").write_text(commit)
        (folder / "blobs/content").write_text("x" * 41)
        (folder / "snapshots" / commit / "config.json").symlink_to("../../blobs/content")

    return write


def cached() -> set[str]:
    return {path.name.removeprefix("models--") for path in Path(constants.HF_HUB_CACHE).iterdir()}


def age() -> None:
    """Let every use so far be an hour ago: a file's time has steps of some milliseconds."""
    for marker in Path(constants.HF_HUB_CACHE).glob(f"*/{hub.FETCHED}"):
        earlier = marker.stat().st_mtime - 3600
        os.utime(marker, (earlier, earlier))


def test_the_least_recently_used_of_the_fetched_models_are_removed_and_no_other(fetch):
    fetch("theirs/first")
    for name in ("a/one", "a/two"):
        with hub.fetched_for_others(name, 200):
            fetch(name)
        age()
    for name in ("a/one", "theirs/first"):  # used again
        with hub.fetched_for_others(name, 200):
            pass
    with hub.fetched_for_others("a/three", 200):
        fetch("a/three")
    assert cached() == {"theirs--first", "a--one", "a--three"}
    age()
    with hub.fetched_for_others("a/one", 99):  # the limit is lower now
        pass
    assert cached() == {"theirs--first"}


def test_room_is_made_before_a_model_is_fetched_and_a_model_too_large_is_refused(fetch):
    for name in ("a/one", "a/two"):
        with hub.fetched_for_others(name, 400):
            fetch(name)
        age()
    with hub.fetched_for_others("a/three", 400):
        message = refused(hub.make_room, "a/three", 5 * 10**13)
        assert "a/three takes 50,000,000 MB of disk, and models from the Hub may take 0 MB together" in message
        assert cached() == {"a--one", "a--two", "a--three"}
        hub.make_room("a/three", 220)
        assert cached() == {"a--two", "a--three"}
        with hub.fetched_for_others("a/four", 400):
            assert "try again when no other is being loaded" in refused(hub.make_room, "a/four", 181)
            hub.make_room("a/four", 80)
        assert cached() == {"a--three"}
    hub.make_room("a/five", 10**12)  # without a limit
    with hub.fetched_for_others("a/four", 400):
        (Path(constants.HF_HUB_CACHE) / "models--a--four" / "part.incomplete").write_text("x" * 401)
    assert cached() == set()


def test_a_fetch_that_fails_or_is_not_needed_removes_nothing_of_others(fetch):
    fetch("theirs/first")
    with pytest.raises(OSError, match="disk"), hub.fetched_for_others("a/one", 0):
        raise OSError("disk")
    with hub.fetched_for_others("a/one", 0):  # as where the Hub cannot be reached
        pass
    assert cached() == {"theirs--first"}


def test_a_model_that_is_being_fetched_stays(fetch):
    with hub.fetched_for_others("a/slow", 100):
        fetch("a/slow")
        age()
        with hub.fetched_for_others("a/quick", 100):
            fetch("a/quick")
        assert cached() == {"a--slow"}
    assert constants.HF_HUB_DISABLE_SHARED_BLOBS  # else removing a repository would leave its files
    assert cached() == {"a--slow"}
