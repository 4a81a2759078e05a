"""The cache folder's bound, and processes that share it, or are killed while they write to it."""

import logging
import multiprocessing
import os
import random
import time
from contextlib import suppress
from pathlib import Path

import pytest
from filelock import FileLock
from forked import fork
from refusing import refused

from intraslice.core import cache
from intraslice.core.cache import (
    MAX_BYTES_VARIABLE,
    cache_path,
    max_cache_bytes,
    read_record,
    read_result,
    remove_stale_folders,
    temporary_folder,
    write_record,
    write_result,
)

SIZE = 1_000


@pytest.fixture(autouse=True)
def folder(own_cache: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache that ten results of `SIZE` bytes fill."""
    monkeypatch.setenv(MAX_BYTES_VARIABLE, str(10 * SIZE))
    return own_cache


def kept(number: int, size: int = SIZE, told: bool = True) -> Path:
    """Keep a result; told, its size is known beforehand."""
    path = cache_path("sweep", ".json", number)
    write_result(path, lambda temporary: temporary.write_bytes(bytes(size)), "it", size if told else 0)
    return path


def age(path: Path, hours: float) -> None:
    then = time.time() - 3600 * hours
    os.utime(path, (then, then - 1))  # so that it is not the system that notes an access


def filled() -> list[Path]:
    """Ten results, the oldest first."""
    paths = [kept(number) for number in range(10)]
    for hours, path in enumerate(reversed(paths), 1):
        age(path, hours)
    return paths


def bytes_in(folder: Path) -> int:
    total = 0
    for place, _, names in os.walk(folder):
        for name in names:
            with suppress(FileNotFoundError):
                total += Path(place, name).stat().st_size
    return total


def temporaries(folder: Path) -> list[Path]:
    return list((folder / "temporary").glob("*"))


@pytest.mark.parametrize("told", [True, False])
def test_the_longest_unused_goes_first(folder, told):
    paths = filled()
    assert all(path.exists() for path in paths)
    new = kept(10, 3 * SIZE, told)
    assert [path.exists() for path in paths] == [False] * 3 + [True] * 7
    assert new.stat().st_size == 3 * SIZE
    assert bytes_in(folder) == 10 * SIZE


def test_reading_is_using(folder):
    paths = filled()
    for path in paths[:2]:
        age(path, 20)
    assert read_result(paths[0], Path.read_bytes) == bytes(SIZE)
    kept(10)
    assert [path.exists() for path in paths] == [True, False] + [True] * 8


@pytest.mark.parametrize("told", [True, False])
def test_what_is_larger_than_the_bound_is_not_kept_and_costs_nothing_nor_written_where_that_is_known(
    folder, told, caplog
):
    paths = filled()
    with caplog.at_level(logging.WARNING):
        too_large = kept(10, 11 * SIZE, told)
    assert not too_large.exists()
    assert all(path.exists() for path in paths)
    assert MAX_BYTES_VARIABLE in caplog.text
    assert temporaries(folder) == []
    write_result(too_large, lambda _: pytest.fail("written"), "it", 11 * SIZE)


def test_weights_and_texts_count_and_stay(folder):
    paths = filled()
    for name in ("models/a/model.safetensors", "wheels/b/text.json", "offload/tmp12345678/weight"):
        file = folder / name
        file.parent.mkdir(parents=True)
        file.write_bytes(bytes(2 * SIZE))
        age(file, 1000)
    new = kept(10)
    assert [path.exists() for path in paths] == [False] * 7 + [True] * 3
    assert new.exists()
    with temporary_folder(9 * SIZE, required=True) as temporary:  # as for weights, which come first
        assert temporary.is_dir()
        assert not any(path.exists() for path in [*paths, new])
    assert bytes_in(folder) == 6 * SIZE
    assert kept(11).exists()


def test_files_of_others_neither_count_nor_go(folder):
    others = [folder / "photo.jpg", folder / "sweep" / "mine.json", folder / "mine" / f"{'0' * 32}.json"]
    for other in others:
        other.parent.mkdir(parents=True, exist_ok=True)
        other.write_bytes(bytes(20 * SIZE))
        age(other, 1000)
    paths = filled()
    kept(10)
    assert all(path.exists() for path in [*others, *paths[1:]])
    assert not paths[0].exists()


def test_results_of_several_files_go_too(folder):
    (old, *_), parts = filled(), cache_path("convergence", "", "it")
    for number in (1, 2):
        write_result(parts / f"{number}.npz", lambda temporary: temporary.write_bytes(bytes(SIZE)), "it")
        age(parts / f"{number}.npz", 100)
    assert not old.exists()
    kept(10, 2 * SIZE)
    assert not parts.exists()


def test_files_are_not_too_many_either(monkeypatch):
    monkeypatch.setattr(cache, "MAX_RESULTS", 5)
    for number in range(20):
        path = kept(number, 1)
        assert path.exists()
    assert len(list(path.parent.iterdir())) == 5


def test_the_bound_is_a_whole_number_of_bytes(monkeypatch):
    monkeypatch.setenv(MAX_BYTES_VARIABLE, "5")
    assert max_cache_bytes() == 5
    monkeypatch.setenv(MAX_BYTES_VARIABLE, "20 GB")
    for function in (max_cache_bytes, remove_stale_folders):
        message = refused(function)
        assert message.startswith(f"{MAX_BYTES_VARIABLE} must be a whole number of bytes, such as ")
        assert message.endswith("got '20 GB'")
    monkeypatch.delenv(MAX_BYTES_VARIABLE)
    assert max_cache_bytes() == 20_000_000_000


def test_processes_that_write_at_once_stay_within_the_bound(folder, monkeypatch):
    monkeypatch.setenv(MAX_BYTES_VARIABLE, str(50 * SIZE))

    def work(first: int) -> None:
        for number in range(first, first + 30):
            path = cache_path("sweep", ".json", number)
            write_result(path, lambda temporary: temporary.write_bytes(bytes(7 * SIZE)), "it", 7 * SIZE)

    folder.mkdir()
    processes, most = [fork(lambda first=first: work(first)) for first in (0, 100, 200)], 0
    while any(process.is_alive() for process in processes):
        with FileLock(folder / ".lock"):  # else what is moved meanwhile is seen twice
            most = max(most, bytes_in(folder))
        time.sleep(0.005)
    assert [process.exitcode for process in processes] == [0, 0, 0]
    kept = len(list((folder / "sweep").iterdir()))
    assert kept in (5, 6, 7)  # 5 if the last three wrote at once: the room for a result is kept while it is moved
    assert bytes_in(folder) == 7 * kept * SIZE
    assert most <= 50 * SIZE
    assert temporaries(folder) == []


def test_a_draft_is_its_writers_until_that_is_dead(folder):
    paths = filled()

    def work() -> None:
        with temporary_folder(4 * SIZE) as temporary:
            (temporary / "half").write_bytes(bytes(SIZE))
            time.sleep(60)

    process = fork(work)
    while not list((folder / "temporary").glob("*/half")):
        time.sleep(0.005)
    (temporary,) = temporaries(folder)
    with temporary_folder() as own:  # nor does one take the other's in the same process
        kept(10)
        assert set(temporaries(folder)) == {temporary, own}
    # What it said that it would write is its own already.
    assert [path.exists() for path in paths] == [False] * 5 + [True] * 5
    process.kill()
    process.join()
    kept(11)
    assert temporaries(folder) == []


def test_whatever_moment_a_writer_is_killed_at_nothing_half_is_found_or_left(folder, monkeypatch):
    moments, records = random.Random(0), [{"number": number, "values": [number] * 40} for number in range(20)]
    written = multiprocessing.Value("i", lock=False)  # pieces, by all writers; a lock could be held by a dead one

    def slowly(temporary: Path) -> None:
        with temporary.open("wb") as file:
            for _ in range(10):
                file.write(bytes(SIZE // 10))
                file.flush()
                written.value += 1
                time.sleep(0.001)

    def work() -> None:
        for number, record in enumerate(records):
            write_record(cache_path("losses", ".json", number), record, "it")
            write_result(cache_path("sweep", ".json", number), slowly, "it", SIZE)

    found = 0
    for _ in range(10):
        enough = written.value + moments.randrange(60)
        process = fork(work)
        while written.value < enough:
            time.sleep(0.0001)
        process.kill()
        process.join()
        monkeypatch.setattr(cache, "_cleaned_folders", set())
        remove_stale_folders()  # as the next start does
        assert temporaries(folder) == []
        assert bytes_in(folder) <= 10 * SIZE
        for number, record in enumerate(records):
            assert read_record(cache_path("losses", ".json", number)) in ({}, record)
        sizes = {file.stat().st_size for file in (folder / "sweep").glob("*")}
        assert sizes <= {SIZE}
        found += len(sizes)
    assert found > 2
