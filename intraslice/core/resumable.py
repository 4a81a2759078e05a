"""Folders for the files of a long run, with which the same run goes on after it was killed.

They count towards the maximum size of the cache. One that no process uses is removed once its space is needed.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

from intraslice.core.cache import MAX_BYTES_VARIABLE, UNFINISHED, cache_folder, cache_lock, free_space
from intraslice.core.errors import UserError


@contextmanager
def resumable_cache_folder(digest: str, size: int) -> Iterator[Path]:
    """The folder in the cache of the run with this digest (32 hex digits), for which `size` bytes are reserved.

    It is removed on exit, and kept where the run fails or is killed. Raises UserError if another process has it, or if
    `size` exceeds the maximum size of the cache.
    """
    folder = cache_folder() / UNFINISHED / f"{size}-{digest}"
    try:
        with cache_lock():
            free_space(size, folder)
            lock = _locked(folder)
    except OSError as error:
        raise UserError(
            f"intermediate results need {size / 1e9:.1f} GB in {cache_folder()}: {error.strerror or error}; raise "
            f"{MAX_BYTES_VARIABLE}, or point INTRASLICE_CACHE to a larger disk"
        ) from error
    with _held(folder, lock):
        yield folder


@contextmanager
def resumable_sibling(target: Path, digest: str) -> Iterator[Path]:
    """A folder beside `target`, from which finished files can be moved there; kept as `resumable_cache_folder` is.

    It has a name of `temporary_sibling`: once no process uses it, the next one that writes to `target` removes it.
    """
    folder = target.with_name(f".{target.name}-{digest}")
    try:
        lock = _locked(folder)
    except OSError as error:
        raise UserError(f"cannot write to {folder.parent} ({error.strerror}); choose another folder") from error
    with _held(folder, lock):
        yield folder


def _locked(folder: Path) -> FileLock:
    """Make the folder, and lock it. Raises UserError if another process has locked it."""
    folder.mkdir(parents=True, exist_ok=True)
    lock = FileLock(folder / ".lock", timeout=0)
    try:
        lock.acquire()
    except Timeout:
        raise UserError(f"another process is already working in {folder}; wait for it to finish, or stop it") from None
    return lock


@contextmanager
def _held(folder: Path, lock: FileLock) -> Iterator[None]:
    try:
        yield
        shutil.rmtree(folder, ignore_errors=True)
    finally:
        lock.release()
