"""Results kept on disk: each under a digest of everything it depends on, whole or not at all.

The folder has a bound in bytes: whatever has not been used for longest goes first. What is being written lies in a
draft folder, which its writer holds by a lock; that of a dead process is swept. A result that cannot be kept is right
all the same, so a full disk is a warning here and never an error.
"""

from __future__ import annotations

import errno
import hashlib
import logging
import os
import re
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from itertools import chain
from pathlib import Path
from typing import Literal, TypeVar, get_args
from uuid import uuid4

import torch
from filelock import FileLock, Timeout

from intraslice.core.errors import UserError, first_line

log = logging.getLogger(__name__)

Value = TypeVar("Value")
Kind = Literal["calibration", "losses", "perplexity", "sensitivity", "settling", "sweep"]
KINDS: tuple[Kind, ...] = get_args(Kind)
NEEDED = ("models", "wheels", "offload")  # they count, and stay: without them there is no model
BOUND = 20 * 10**9  # bytes
BOUND_VARIABLE = "INTRASLICE_MAX_CACHE_BYTES"
MAX_RESULTS = 5_000  # files; to look through them takes a tenth of a second
PATIENCE = 10.0  # seconds for a lock that is only ever held for moments
FORGOTTEN = 3600.0  # seconds; drafts of earlier versions have no lock that could tell
DAMAGED = ".damaged"  # what cannot be read, for whoever wants to look; it goes like a result

_DIGEST = re.compile(r"[0-9a-f]{32}(\.\w+)?")
_DRAFT = re.compile(r"(\d+)-[0-9a-f]{32}")
_EARLIER_DRAFTS = ["models/.convert-*", "wheels/.download-*", "wheels/*/*.partial"]
_EARLIER_DRAFTS += [f"{kind}/tmp????????" for kind in KINDS]
_swept: set[Path] = set()
_warned: set[tuple[Path, int | None]] = set()
_held_by_parent: list[FileLock] = []


def cache_path(kind: Kind, suffix: str, *parts: object) -> Path:
    """Where a result of this kind is kept that depends on `parts`; tensors count with every value and their shape.

    One kind has one suffix: files with another are of an earlier format, and go.
    """
    digest = hashlib.sha256()
    for part in parts:
        if isinstance(part, torch.Tensor):
            digest.update(f"{part.dtype} {tuple(part.shape)}".encode())
            digest.update(part.cpu().numpy().tobytes())
        else:
            digest.update(f"\n{part}\n".encode())
    return cache_folder() / kind / f"{digest.hexdigest()[:32]}{suffix}"


def keep(path: Path, write: Callable[[Path], object], what: str, size: int = 0) -> None:
    """Let `write` make a file, and put it at `path`, in the cache, once it is whole. A warning where that fails.

    Where its `size` in bytes is known beforehand there is room before a byte is written.
    """
    try:
        with draft_folder(size) as folder:
            draft = folder / path.name
            write(draft)
            with _lock():
                if (written := draft.stat().st_size) > size:
                    _make_room(written, folder)
                path.parent.mkdir(parents=True, exist_ok=True)
                _drop_earlier(path)
                os.replace(draft, path)
    except OSError as error:
        # Once: where one result cannot be kept, no other can.
        if (cause := (cache_folder(), error.errno)) not in _warned:
            _warned.add(cause)
            reason = error.strerror or error
            log.warning(
                "cannot keep %s in %s: %s; free some space or point INTRASLICE_CACHE elsewhere", what, cause[0], reason
            )


def kept(path: Path, read: Callable[[Path], Value]) -> Value | None:
    """What `read` makes of the file at `path`; None if there is none, or a damaged one, which is moved aside."""
    try:
        value = read(path)
    except FileNotFoundError:
        return None
    except (MemoryError, torch.OutOfMemoryError):  # which says nothing of the file
        raise
    except Exception as error:  # a parser may raise anything on damaged bytes
        log.warning("%s in the cache is damaged (%s) and is made anew", path.name, first_line(error))
        with suppress(OSError):  # a folder that can only be read keeps it
            path.rename(path.with_suffix(DAMAGED))
        return None
    mark_used(path)
    return value


def mark_used(path: Path) -> None:
    """What was read just now goes last. That stands in its access time, whether or not the system notes accesses."""
    with suppress(OSError):  # a folder that can only be read keeps its times
        os.utime(path, ns=(time.time_ns(), path.stat().st_mtime_ns))


def cache_folder() -> Path:
    """Where converted weights, text and calibrations are kept: INTRASLICE_CACHE, else the platform's user cache."""
    if chosen := os.environ.get("INTRASLICE_CACHE"):
        return Path(chosen).expanduser()
    home = Path.home()
    if sys.platform == "win32":
        base = Path(os.environ.get("LOCALAPPDATA", home / "AppData" / "Local"))
    elif sys.platform == "darwin":
        base = home / "Library" / "Caches"
    else:
        base = Path(os.environ.get("XDG_CACHE_HOME", home / ".cache"))
    return base / "intraslice"


def cache_bound() -> int:
    """Bytes that the cache folder may hold. Raises UserError where the environment has no whole number."""
    given = os.environ.get(BOUND_VARIABLE, "").strip() or str(BOUND)
    if not given.isdecimal():
        raise UserError(f"{BOUND_VARIABLE} must be a whole number of bytes, such as {BOUND}, got {given[:80]!r}")
    return int(given)


def bound_cache(size: int) -> None:
    """Let the cache folder hold `size` bytes, in this process and those that it starts."""
    os.environ[BOUND_VARIABLE] = str(size)


@contextmanager
def draft_folder(size: int = 0, needed: bool = False) -> Iterator[Path]:
    """A folder of the cache to write in, gone afterwards; if this process is killed the next one sweeps it.

    There is room for `size` bytes, which are its own until then. Raises OSError where it cannot be made, and where so
    much does not fit into the cache's bound, unless it is `needed`.
    """
    folder = cache_folder() / "drafts" / f"{size}-{uuid4().hex}"
    with ExitStack() as held:
        with _lock():
            _sweep(folder for folder, _ in _draft_folders())
            if size:
                _make_room(size, folder, needed)
            held.enter_context(_held(folder))
        yield folder


@contextmanager
def scratch_beside(place: Path) -> Iterator[Path]:
    """A folder to write in beside `place`, where what is whole is moved to; gone afterwards.

    If this process is killed, the next that writes to the same place removes it. Raises OSError where none can be made.
    """
    name = re.compile(rf"\.{re.escape(place.name)}-[0-9a-f]{{32}}")
    _sweep([other for other in place.parent.iterdir() if name.fullmatch(other.name)])
    with _held(place.with_name(f".{place.name}-{uuid4().hex}")) as folder:
        yield folder


@contextmanager
def _held(folder: Path) -> Iterator[Path]:
    """A new folder that `_sweep` lets be while this process lives; gone afterwards."""
    alive, process = FileLock(folder / ".lock", thread_local=False), os.getpid()  # another thread may end the work
    folder.mkdir(parents=True)
    alive.acquire(timeout=PATIENCE)
    try:
        yield folder
    finally:
        if os.getpid() != process:  # a fork gives up what its parent holds: its copy of the lock must not be deleted
            _held_by_parent.append(alive)
        else:
            alive.release()
            shutil.rmtree(folder, ignore_errors=True)


def sweep_drafts() -> None:
    """Remove, once a process, what killed ones left half written. Raises UserError as `cache_bound` does."""
    cache_bound()
    folder = cache_folder()
    if folder in _swept:
        return
    _swept.add(folder)
    with suppress(OSError):  # where nothing can be removed, nothing can be
        if (folder / "drafts").is_dir():
            with _lock():
                _sweep(folder for folder, _ in _draft_folders())
        for draft in chain.from_iterable(folder.glob(pattern) for pattern in _EARLIER_DRAFTS):
            if time.time() - draft.stat().st_mtime > FORGOTTEN:
                shutil.rmtree(draft) if draft.is_dir() else draft.unlink()


@contextmanager
def empty_cache() -> Iterator[Path]:
    """While open, results are kept in an empty folder, and gone afterwards: what is timed is made, not read."""
    before = os.environ.get("INTRASLICE_CACHE")
    with tempfile.TemporaryDirectory() as folder:
        os.environ["INTRASLICE_CACHE"] = folder
        try:
            yield Path(folder)
        finally:
            os.environ.pop("INTRASLICE_CACHE")
            if before is not None:
                os.environ["INTRASLICE_CACHE"] = before


def _lock() -> FileLock:
    """Held while drafts are made and swept, results put in their places and removed: by one process at a time."""
    folder = cache_folder()
    folder.mkdir(parents=True, exist_ok=True)
    return FileLock(folder / ".lock", timeout=PATIENCE)


def _sweep(folders: Iterable[Path]) -> None:
    """Remove those that nobody holds."""
    for folder in folders:
        try:
            with FileLock(folder / ".lock", timeout=0):
                pass
        except Timeout:
            continue
        shutil.rmtree(folder, ignore_errors=True)


def _make_room(size: int, draft: Path, needed: bool = False) -> None:
    """Remove results, the longest unused first, until the draft may have `size` bytes. Raises OSError as a draft does.

    An opened file that is removed can still be read; a system where that is not so refuses to remove it.
    """
    taken = sum(_bytes(cache_folder() / name) for name in NEEDED)
    taken += sum(max(claimed, _bytes(folder)) for folder, claimed in _draft_folders() if folder != draft)
    room = cache_bound() - taken
    fits = size <= room
    if fits or needed:
        room -= size
    results = sorted(_results(), key=lambda result: max(result[1].st_atime, result[1].st_mtime), reverse=True)
    total = sum(stat.st_size for _, stat in results)
    while results and (total > room or len(results) >= MAX_RESULTS):
        file, stat = results.pop()
        with suppress(OSError):
            file.unlink()
            total -= stat.st_size
            file.parent.rmdir()  # if it was the last one there
    if not fits and not needed:
        raise OSError(errno.EFBIG, f"it is more than {BOUND_VARIABLE} leaves room for")


def _draft_folders() -> Iterator[tuple[Path, int]]:
    """The drafts there are, and the bytes that each may have."""
    for folder in (cache_folder() / "drafts").glob("*"):
        if name := _DRAFT.fullmatch(folder.name):
            yield folder, int(name[1])


def _results() -> list[tuple[Path, os.stat_result]]:
    """Every file that a result consists of. Only names as `cache_path` makes them count: others' files are theirs."""
    results = []
    for kind in KINDS:
        with suppress(OSError), os.scandir(cache_folder() / kind) as entries:
            for entry in entries:
                if _DIGEST.fullmatch(entry.name):
                    results += _stats(_files(Path(entry)) if entry.is_dir() else [Path(entry)])
    return results


def _files(folder: Path) -> Iterator[Path]:
    return (Path(place, name) for place, _, names in os.walk(folder) for name in names)


def _stats(files: Iterable[Path]) -> list[tuple[Path, os.stat_result]]:
    found = []
    for file in files:
        with suppress(FileNotFoundError):  # another process was faster
            found.append((file, file.lstat()))
    return found


def _bytes(folder: Path) -> int:
    return sum(stat.st_size for _, stat in _stats(_files(folder)))


def _drop_earlier(path: Path) -> None:
    """Remove results of an earlier format, which nothing reads any more, from the folder of one that is kept."""
    for other in path.parent.iterdir():
        if _DIGEST.fullmatch(other.name) and other.suffix not in (path.suffix, DAMAGED):
            with suppress(OSError):
                other.unlink()
