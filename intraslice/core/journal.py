"""The finished steps of a long run, with which the same run goes on after it was killed, and the folders of its files.

The folders count towards the maximum size of the cache. One that no process uses is removed once its space is needed.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from filelock import FileLock, Timeout
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from intraslice.core.cache import MAX_BYTES_VARIABLE, UNFINISHED, cache_folder, cache_lock, free_space
from intraslice.core.errors import UserError


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
            raise UserError(
                f"the unfinished step {step} in {self.folder} is damaged ({error}); all saved steps in that folder "
                "were removed. Run the same command again; it starts from the beginning"
            ) from error

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
        raise UserError(
            f"cannot write {target.name} to {target.parent}: {error}; free some space, and run the same command again"
        ) from error


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

    It is removed on exit, and kept where the run fails or is killed. Raises UserError if another process has it, or if
    `size` exceeds the maximum size of the cache.
    """
    folder = cache_folder() / UNFINISHED / f"{size}-{digest}"
    with ExitStack() as stack:
        try:
            with cache_lock():
                free_space(size, folder)
                stack.enter_context(_held(folder))
        except OSError as error:
            raise UserError(
                f"intermediate results need {size / 1e9:.1f} GB in {cache_folder()}: {error.strerror or error}; raise "
                f"{MAX_BYTES_VARIABLE}, or point INTRASLICE_CACHE to a larger disk"
            ) from error
        yield folder


@contextmanager
def resumable_sibling(target: Path, digest: str) -> Iterator[Path]:
    """A folder beside `target`, from which finished files can be moved there; kept as `resumable_cache_folder` is.

    It has a name of `temporary_sibling`: once no process uses it, the next one that writes to `target` removes it.
    """
    folder = target.with_name(f".{target.name}-{digest}")
    with ExitStack() as stack:
        try:
            stack.enter_context(_held(folder))
        except OSError as error:
            raise UserError(f"cannot write to {folder.parent} ({error.strerror}); choose another folder") from error
        yield folder


@contextmanager
def _held(folder: Path) -> Iterator[None]:
    """A locked folder, removed unless the run fails. Raises UserError if another process has locked it."""
    folder.mkdir(parents=True, exist_ok=True)
    lock = FileLock(folder / ".lock", timeout=0)
    try:
        lock.acquire()
    except Timeout:
        raise UserError(f"another process is already working in {folder}; wait for it to finish, or stop it") from None
    try:
        yield
        shutil.rmtree(folder, ignore_errors=True)
    finally:
        lock.release()
