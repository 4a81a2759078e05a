"""What is kept on disk, and what happens when it cannot be."""

import logging
import time
from contextlib import ExitStack, suppress
from pathlib import Path

import pytest
import torch
from forked import fork
from refusing import refused

from intraslice.core.cache import (
    MAX_BYTES_VARIABLE,
    cache_path,
    read_record,
    read_result,
    resumable_cache_folder,
    resumable_sibling,
    temporary_folder,
    temporary_sibling,
    write_record,
    write_result,
)


def test_every_part_tells_paths_apart(own_cache):
    tokens = torch.arange(6)
    others = [("b", tokens), ("a", tokens.view(2, 3)), ("a", tokens.int()), ("a", tokens + 1), ("a", tokens, "")]
    paths = [cache_path("sweep", ".json", *parts) for parts in [("a", tokens), *others]]
    paths.append(cache_path("losses", ".json", "a", tokens))
    assert len(set(paths)) == len(paths)
    assert paths[0] == cache_path("sweep", ".json", "a", torch.arange(6))
    assert paths[0].parent == own_cache / "sweep"


@pytest.fixture
def path(own_cache) -> Path:
    return cache_path("sweep", ".json", "it")


def test_a_record_comes_back_and_a_lack_of_memory_is_no_damage(path):
    assert read_record(path) == {}
    write_record(path, {"a": [1, 2.5]}, "it")
    assert read_record(path) == {"a": [1, 2.5]}
    assert list(path.parent.iterdir()) == [path]
    write_record(path, {"a": 1}, "it")

    def read(path: Path) -> None:
        raise MemoryError

    with pytest.raises(MemoryError):
        read_result(path, read)
    assert read_record(path) == {"a": 1}


@pytest.mark.parametrize("damaged", ["", '{"a": ', '{"a": 1}', "[1]", "\xff"])
def test_a_damaged_record_counts_as_none_and_is_moved_aside(path, damaged, caplog):
    path.parent.mkdir(parents=True)
    path.write_text(damaged, encoding="latin-1")
    assert read_record(path) == {}
    (line,) = caplog.messages
    assert path.name in line
    assert "\n" not in line
    assert [file.suffix for file in path.parent.iterdir()] == [".damaged"]
    write_record(path, {"a": 1}, "it")
    assert read_record(path) == {"a": 1}


def test_a_record_with_any_bit_flipped_is_none_or_the_same(path):
    record = {"perplexity": 14.85, "rows": [1, 2, 3]}
    write_record(path, record, "it")
    whole = path.read_bytes()
    for bit in range(8 * len(whole)):
        damaged = bytearray(whole)
        damaged[bit // 8] ^= 1 << bit % 8
        path.write_bytes(damaged)
        assert read_record(path) in ({}, record), bit


def test_an_interrupted_write_leaves_the_old_record_and_nothing_else(own_cache, path):
    write_record(path, {"a": 1}, "it")
    before = {file for file in own_cache.rglob("*") if file.name != "temporary"}

    def interrupted(draft: Path) -> None:
        draft.write_text("half")
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_result(path, interrupted, "it")
    assert read_record(path) == {"a": 1}
    assert {file for file in own_cache.rglob("*") if file.name != "temporary"} == before


@pytest.mark.parametrize("size", [0, 8])
def test_what_cannot_be_kept_is_one_warning(own_cache, size, caplog):
    own_cache.write_text("in the way")
    with caplog.at_level(logging.WARNING):
        for number in range(3):
            write_result(
                cache_path("sweep", ".json", number), lambda draft: draft.write_bytes(b"12345678"), "the result", size
            )
    (record,) = caplog.records
    assert "cannot write the result" in record.message
    assert "INTRASLICE_CACHE" in record.message
    assert own_cache.read_text() == "in the way"


def test_a_home_that_cannot_be_written_does_not_matter_where_the_cache_can(path, monkeypatch, caplog):
    for name in ("HOME", "XDG_CACHE_HOME", "TMPDIR"):
        monkeypatch.setenv(name, "/dev/null")
    write_record(path, {"a": 1}, "it")
    assert read_record(path) == {"a": 1}
    assert not caplog.records
    monkeypatch.delenv("INTRASLICE_CACHE")
    write_record(cache_path("sweep", ".json", "it"), {"a": 1}, "it")
    assert len(caplog.records) == 1


def test_what_a_killed_writer_left_beside_its_place_goes_with_the_next(tmp_path):
    place, other = tmp_path / "sliced", tmp_path / ".sliced-mine"
    other.mkdir()

    def work() -> None:
        with temporary_sibling(place) as scratch:
            (scratch / "half").write_bytes(b"x")
            time.sleep(60)

    process = fork(work)
    while not list(tmp_path.glob("*/half")):
        time.sleep(0.005)
    with temporary_sibling(place), temporary_sibling(tmp_path / "slice"):  # those at work stay, and others of the name
        assert len(list(tmp_path.glob(".sliced-*"))) == 3
    process.kill()
    process.join()
    with temporary_sibling(place) as scratch:
        assert set(tmp_path.iterdir()) == {scratch, other}
    assert list(tmp_path.iterdir()) == [other]


def test_a_fork_leaves_alone_what_its_parent_holds(own_cache):
    writing = ExitStack()
    folder = writing.enter_context(temporary_folder())
    # As where the last reference to it is dropped: Python 3.13 clears what is registered for the exit in a fork.
    child = fork(writing.close)
    child.join()
    assert child.exitcode == 0
    assert folder.is_dir()
    with temporary_folder():  # which removes what nobody holds
        assert folder.is_dir()
    writing.close()
    assert not folder.exists()


DIGEST, OTHER = "0" * 32, "1" * 32


def stop_in(folder):
    with suppress(KeyboardInterrupt), folder as path:
        (path / "step").write_text("finished")
        raise KeyboardInterrupt
    return path


def test_a_folder_is_kept_until_its_run_ends_and_not_shared(own_cache):
    path = stop_in(resumable_cache_folder(DIGEST, 100))
    with resumable_cache_folder(DIGEST, 100) as again:
        assert again == path
        assert (again / "step").read_text() == "finished"
    assert not path.exists()
    with resumable_cache_folder(DIGEST, 100):
        assert "another process is already working in" in refused(resumable_cache_folder(DIGEST, 100).__enter__)


def test_an_abandoned_folder_is_removed_once_its_space_is_needed(own_cache, monkeypatch):
    monkeypatch.setenv(MAX_BYTES_VARIABLE, "1000")
    abandoned = stop_in(resumable_cache_folder(DIGEST, 600))
    with temporary_folder(300):
        assert abandoned.exists()
    with resumable_cache_folder(OTHER, 700):
        assert not abandoned.exists()
        with pytest.raises(OSError, match="exceed the space"), temporary_folder(400):  # what is in use is not removed
            pass
    assert MAX_BYTES_VARIABLE in refused(resumable_cache_folder(OTHER, 1100).__enter__)


def test_a_sibling_is_removed_by_the_next_one_that_writes_there(tmp_path):
    path = stop_in(resumable_sibling(tmp_path / "model", DIGEST))
    with temporary_sibling(tmp_path / "model"):
        assert not path.exists()
