"""Disk cache of results: each file is named by a digest of everything it depends on, and written atomically.

The folder has a maximum size in bytes; the least recently used results are removed first. A result is written in a
temporary folder that its process locks; folders of dead processes are removed. A failed write never affects the
result itself, so a full disk causes a warning and no error.
"""

import errno
import hashlib
import json
import logging
import os
import re
import shutil
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeVar, get_args
from uuid import uuid4

import torch
from filelock import FileLock, Timeout
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from intraslice.core.checks import from_environment
from intraslice.core.errors import UserError, first_line

log = logging.getLogger(__name__)

Value = TypeVar("Value")
Kind = Literal["calibration", "convergence", "digests", "losses", "samples", "search", "sensitivity", "states", "sweep"]
KINDS: tuple[Kind, ...] = get_args(Kind)
NEVER_REMOVED = ("models", "wheels", "offload")  # folders that count towards the size; models cannot load without them
UNFINISHED = "unfinished"  # folder of the files with which killed runs go on
MAX_CACHE_BYTES = 20 * 10**9  # bytes
MAX_BYTES_VARIABLE = "INTRASLICE_MAX_CACHE_BYTES"
MAX_RESULTS = 5_000  # files; listing them takes a tenth of a second
LOCK_TIMEOUT = 10.0  # seconds to wait for a lock, which is only held for moments
DAMAGED = ".damaged"  # suffix of unreadable files, kept for inspection and removed like results

_DIGEST = re.compile(r"[0-9a-f]{32}(\.\w+)?")
_TEMPORARY_NAME = re.compile(r"(\d+)-[0-9a-f]{32}")
_cleaned_folders: set[Path] = set()
_warned: set[tuple[Path, int | None]] = set()
_locks_of_parent: list[FileLock] = []


def cache_path(kind: Kind, suffix: str, *parts: object) -> Path:
    """Path of the result of this kind that depends on `parts`; of tensors, dtype, shape and all values count."""
    digest = hashlib.sha256()
    for part in parts:
        if isinstance(part, torch.Tensor):
            digest.update(f"{part.dtype} {tuple(part.shape)}".encode())
            digest.update(part.cpu().numpy().tobytes())
        else:
            digest.update(f"\n{part}\n".encode())
    return cache_folder() / kind / f"{digest.hexdigest()[:32]}{suffix}"


def write_result(path: Path, write: Callable[[Path], object], what: str, size: int = 0) -> None:
    """Let `write` write a temporary file, and move it to `path` in the cache. Logs a warning where that fails.

    `what` names the result in the warning. If the `size` in bytes is known, space is freed before the file is written.
    """
    try:
        with temporary_folder(size) as folder:
            file = folder / path.name
            write(file)
            with cache_lock():
                if (written := file.stat().st_size) > size:
                    free_space(written, folder)
                path.parent.mkdir(parents=True, exist_ok=True)
                os.replace(file, path)
    except OSError as error:
        # One warning for each cause: where one result cannot be written, no other can.
        if (cause := (cache_folder(), error.errno)) not in _warned:
            _warned.add(cause)
            line = "cannot write %s to %s: %s; free some space or point INTRASLICE_CACHE elsewhere"
            log.warning(line, what, cause[0], error.strerror or error)


def read_result(path: Path, read: Callable[[Path], Value]) -> Value | None:
    """What `read` returns for the file at `path`. None if there is no file, or a damaged one, which is renamed."""
    try:
        value = read(path)
    except FileNotFoundError:
        return None
    except (MemoryError, torch.OutOfMemoryError):  # not caused by the file
        raise
    except Exception as error:  # a parser may raise anything on damaged bytes
        log.warning("%s in the cache is damaged (%s) and will be computed again", path.name, first_line(error))
        with suppress(OSError):  # of a read-only folder
            path.rename(path.with_suffix(DAMAGED))
        return None
    with suppress(OSError):  # of a read-only folder
        # The access time orders removal; not every file system updates it on reading.
        os.utime(path, ns=(time.time_ns(), path.stat().st_mtime_ns))
    return value


def cache_folder() -> Path:
    """The folder of converted weights, texts and results: INTRASLICE_CACHE, else the platform's user cache."""
    if configured := os.environ.get("INTRASLICE_CACHE"):
        return Path(configured).expanduser()
    home = Path.home()
    if sys.platform == "win32":
        base = Path(os.environ.get("LOCALAPPDATA", home / "AppData" / "Local"))
    elif sys.platform == "darwin":
        base = home / "Library" / "Caches"
    else:
        base = Path(os.environ.get("XDG_CACHE_HOME", home / ".cache"))
    return base / "intraslice"


def max_cache_bytes() -> int:
    """Maximum size of the cache folder, in bytes. Raises UserError where the environment has no whole number."""
    return from_environment(MAX_BYTES_VARIABLE, MAX_CACHE_BYTES, f"a whole number of bytes, such as {MAX_CACHE_BYTES}")


@contextmanager
def temporary_folder(size: int = 0, required: bool = False) -> Iterator[Path]:
    """A temporary folder in the cache, removed on exit, or by the next process if this one is killed.

    `size` bytes are reserved for it. Raises OSError where it cannot be created, or where `size` exceeds the maximum
    size of the cache, unless `required`.
    """
    folder = cache_folder() / "temporary" / f"{size}-{uuid4().hex}"
    with ExitStack() as stack:
        with cache_lock():
            _remove_unlocked(folder for folder, _ in _reserved_folders("temporary"))
            if size:
                free_space(size, folder, required)
            stack.enter_context(_locked_folder(folder))
        yield folder


@contextmanager
def installation(folder: Path, size: int) -> Iterator[Path]:
    """A temporary folder for files that are moved into `folder`, in one process at a time; the others wait.

    Raises UserError where the cache cannot be written.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        # Inside the cache, so that only one disk needs free space.
        with FileLock(folder / ".lock"), temporary_folder(size, required=True) as temporary:
            yield temporary
    except (OSError, SafetensorError) as error:
        raise UserError(
            "cannot write to the cache folder ({reason}); free some space there, or set INTRASLICE_CACHE to a folder "
            "that can be written",
            reason=getattr(error, "strerror", None) or first_line(error),  # without the path that the system adds
        ) from error


@contextmanager
def temporary_sibling(target: Path) -> Iterator[Path]:
    """A temporary folder in the folder of `target`, from which finished files can be moved there; removed on exit.

    If this process is killed, the next one that writes to `target` removes it. Raises OSError if it is not created.
    """
    name = re.compile(rf"\.{re.escape(target.name)}-[0-9a-f]{{32}}")
    _remove_unlocked([other for other in target.parent.iterdir() if name.fullmatch(other.name)])
    with _locked_folder(target.with_name(f".{target.name}-{uuid4().hex}")) as folder:
        yield folder


@contextmanager
def _locked_folder(folder: Path, is_resumable: bool = False) -> Iterator[Path]:
    """A locked folder, removed on exit unless a resumable run fails. UserError if another process has locked it."""
    lock, process = FileLock(folder / ".lock", thread_local=False), os.getpid()  # another thread may release it
    folder.mkdir(parents=True, exist_ok=True)
    try:
        lock.acquire(timeout=0 if is_resumable else LOCK_TIMEOUT)
    except Timeout:
        message = "another process is already working in {folder}; wait for it to finish, or stop it"
        raise UserError(message, folder=folder) from None
    is_kept = is_resumable
    try:
        yield folder
        is_kept = False
    finally:
        if os.getpid() != process:  # in a fork: deleting its copy of the lock would release the parent's
            _locks_of_parent.append(lock)
        else:
            if not is_kept:  # before another process can take over a resumable run
                shutil.rmtree(folder, ignore_errors=True)
            lock.release()


def remove_stale_folders() -> None:
    """Remove temporary folders of killed processes, once per process. Raises UserError as `max_cache_bytes` does."""
    max_cache_bytes()
    if (folder := cache_folder()) not in _cleaned_folders and folder.is_dir():
        _cleaned_folders.add(folder)
        with suppress(OSError), cache_lock():  # of a read-only folder
            _remove_unlocked(folder for folder, _ in _reserved_folders("temporary"))


def cache_lock() -> FileLock:
    """Lock for all changes to the cache folder: one process at a time creates, moves and removes files."""
    folder = cache_folder()
    folder.mkdir(parents=True, exist_ok=True)
    return FileLock(folder / ".lock", timeout=LOCK_TIMEOUT)


def _remove_unlocked(folders: Iterable[Path]) -> None:
    """Remove the folders that no process holds a lock on."""
    for folder in folders:
        try:
            with FileLock(folder / ".lock", timeout=0):
                pass
        except Timeout:
            continue
        shutil.rmtree(folder, ignore_errors=True)


def free_space(size: int, folder: Path, required: bool = False) -> None:
    """Remove least recently used results until `folder` may hold `size` bytes. Raises OSError if it never may.

    Files that another process has open stay readable, or cannot be removed, depending on the system.
    """
    available = max_cache_bytes() - _used(folder)
    if size > available:
        _remove_unlocked(other for other, _ in _reserved_folders(UNFINISHED) if other != folder)
        available = max_cache_bytes() - _used(folder)
    if is_granted := required or size <= available:
        available -= size
    results = sorted(_results(), key=lambda result: max(result[1].st_atime, result[1].st_mtime), reverse=True)
    total = sum(stat.st_size for _, stat in results)
    while results and (total > available or len(results) >= MAX_RESULTS):
        file, stat = results.pop()
        with suppress(OSError):
            file.unlink()
            total -= stat.st_size
            file.parent.rmdir()  # if it is empty
    if not is_granted:
        raise OSError(errno.EFBIG, f"{size:,} bytes exceed the space that {MAX_BYTES_VARIABLE} allows")


def _used(folder: Path) -> int:
    """Bytes of all that is not a result, except `folder`; of folders with a reservation, at least what it says."""
    others = [pair for pair in _reserved_folders("temporary", UNFINISHED) if pair[0] != folder]
    kept = sum(folder_bytes(cache_folder() / name) for name in NEVER_REMOVED)
    return kept + sum(max(reserved, folder_bytes(other)) for other, reserved in others)


def _reserved_folders(*parents: str) -> list[tuple[Path, int]]:
    """The existing folders with a reservation, in these folders of the cache, and the bytes reserved for each."""
    folders = [folder for parent in parents for folder in (cache_folder() / parent).glob("*")]
    return [(folder, int(name[1])) for folder in folders if (name := _TEMPORARY_NAME.fullmatch(folder.name))]


def _results() -> list[tuple[Path, os.stat_result]]:
    """All files of results. Only names from `cache_path` count: other files belong to someone else."""
    results = []
    for kind in KINDS:
        with suppress(OSError), os.scandir(cache_folder() / kind) as entries:
            for entry in entries:
                if _DIGEST.fullmatch(entry.name):
                    results += _stats(_files(Path(entry)) if entry.is_dir() else [Path(entry)])
    return results


def _files(folder: Path) -> Iterator[Path]:
    return (Path(parent, name) for parent, _, names in os.walk(folder) for name in names)


def _stats(files: Iterable[Path]) -> list[tuple[Path, os.stat_result]]:
    stats = []
    for file in files:
        with suppress(FileNotFoundError):  # another process removed it
            stats.append((file, file.lstat()))
    return stats


def folder_bytes(folder: Path) -> int:
    """The bytes of all files in a folder; of a link those of its text."""
    return sum(stat.st_size for _, stat in _stats(_files(folder)))


def write_record(path: Path, record: dict[str, Any], what: str) -> None:
    """Write a JSON object to the cache, with a checksum in a second line. `what` names it in warnings."""
    content = json.dumps(record)
    lines = f"{content}\n{_checksum(content)}".encode()
    write_result(path, lambda file: file.write_bytes(lines), what, len(lines))


def read_record(path: Path) -> dict[str, Any]:
    """The JSON object at `path`; empty if there is none, or a damaged one."""

    def read(file: Path) -> dict[str, Any]:
        content, _, checksum = file.read_text(encoding="utf-8").partition("\n")
        if checksum != _checksum(content):
            raise ValueError("the checksum does not match")
        return json.loads(content)

    return read_result(path, read) or {}


def _checksum(content: str) -> str:
    return hashlib.sha256(content.encode()).hexdigest()


@dataclass(frozen=True)
class Journal:
    """The tensors of finished steps, as in a dictionary, but in a file each.

    Steps depend only on earlier steps, so repeating an interrupted one gives the same bytes. Tensors are read on the
    CPU. Raises UserError where the disk is full, or a file is damaged; then all steps are removed, since those that it
    was made from may be gone.
    """

    folder: Path

    def __contains__(self, step: object) -> bool:
        return (self.folder / str(step)).exists()

    def __setitem__(self, step: str, tensors: dict[str, Tensor]) -> None:
        stored = {name: tensor.contiguous().cpu() for name, tensor in tensors.items()}
        write_whole(self.folder / step, lambda partial: save_file(stored, partial))

    def __getitem__(self, step: str) -> dict[str, Tensor]:
        try:
            return load_file(self.folder / step)
        except (SafetensorError, OSError, ValueError) as error:
            for other in self.folder.iterdir():
                other.unlink(missing_ok=True)
            message = (
                "the unfinished step {step} in {folder} is damaged ({error}); all saved steps in that folder were "
                "removed. Run the same command again; it starts from the beginning"
            )
            raise UserError(message, step=step, folder=self.folder, error=error) from error

    def __delitem__(self, step: str) -> None:
        with suppress(OSError):  # some systems keep a file that is mapped
            (self.folder / step).unlink(missing_ok=True)


Steps = Journal | dict[str, dict[str, Tensor]]  # on disk, or of a run that nothing but this process goes on with


@contextmanager
def resumable_write(target: Path) -> Iterator[None]:
    """Turn a failure to write `target` into a UserError that says how to go on."""
    try:
        yield
    except (OSError, SafetensorError) as error:
        message = "cannot write {file} to {folder}: {error}; free some space, and run the same command again"
        raise UserError(message, file=target.name, folder=target.parent, error=error) from error


def write_whole(file: Path, write: Callable[[Path], object]) -> None:
    """Let `write` write a file whole or not at all. Raises UserError where the disk is full."""
    partial = file.with_name(f"{file.name}.partial")  # replaces that of an interrupted call
    with resumable_write(file):
        try:
            write(partial)
            os.replace(partial, file)
        finally:
            partial.unlink(missing_ok=True)


@contextmanager
def resumable_cache_folder(digest: str, size: int) -> Iterator[Path]:
    """The folder in the cache of the run with this digest (32 hex digits), for which `size` bytes are reserved.

    It is removed on exit, but kept where the run fails. Raises UserError if another process has it, or it is too large.
    """
    folder = cache_folder() / UNFINISHED / f"{size}-{digest}"
    with ExitStack() as stack:
        try:
            with cache_lock():
                free_space(size, folder)
                stack.enter_context(_locked_folder(folder, is_resumable=True))
        except OSError as error:
            message = (
                "intermediate results need {gigabytes:.1f} GB in {folder}: {reason}; raise {variable}, or point "
                "INTRASLICE_CACHE to a larger disk"
            )
            values = {"folder": cache_folder(), "reason": error.strerror or error, "variable": MAX_BYTES_VARIABLE}
            raise UserError(message, gigabytes=size / 1e9, **values) from error
        yield folder


@contextmanager
def resumable_sibling(target: Path, digest: str) -> Iterator[Path]:
    """A folder beside `target`, from which finished files can be moved there; kept as `resumable_cache_folder` is.

    It has a name of `temporary_sibling`: once no process uses it, the next one that writes to `target` removes it.
    """
    folder = target.with_name(f".{target.name}-{digest}")
    with ExitStack() as stack:
        try:
            stack.enter_context(_locked_folder(folder, is_resumable=True))
        except OSError as error:
            message = "cannot write to {folder} ({reason}); choose another folder"
            raise UserError(message, folder=folder.parent, reason=error.strerror) from error
        yield folder
