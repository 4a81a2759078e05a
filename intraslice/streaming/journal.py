"""The finished steps of a run, one file each, with which a killed run goes on."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from intraslice.core.errors import UserError

T = TypeVar("T")


@dataclass(frozen=True)
class Journal:
    """A step is finished once its file is in the folder: files are written under another name and renamed.

    Steps depend only on the files of earlier steps, so repeating an interrupted one gives the same bytes.
    """

    folder: Path

    def is_finished(self, step: str) -> bool:
        """Whether the file of this step is there."""
        return self._file(step).exists()

    def write(self, step: str, tensors: dict[str, Tensor]) -> None:
        """Write the tensors of a step, which is finished then."""
        stored = {name: tensor.contiguous().cpu() for name, tensor in tensors.items()}
        write_whole(self._file(step), lambda partial: save_file(stored, partial))

    def read(self, step: str) -> dict[str, Tensor]:
        """The tensors of a finished step, on the CPU."""
        return self._readable(step, load_file)

    def write_json(self, step: str, value: Any) -> None:
        """Write a value of a step, which is finished then."""
        write_whole(self._file(step), lambda partial: partial.write_text(json.dumps(value), encoding="utf-8"))

    def read_json(self, step: str) -> Any:
        """The value of a finished step."""
        return self._readable(step, lambda file: json.loads(file.read_text(encoding="utf-8")))

    def write_batches(self, step: str, batches: Sequence[Tensor]) -> None:
        """As `write`, of tensors without names."""
        self.write(step, {str(index): batch for index, batch in enumerate(batches)})

    def read_batches(self, step: str) -> list[Tensor]:
        """The inverse of `write_batches`."""
        tensors = self.read(step)
        return [tensors[str(index)] for index in range(len(tensors))]

    def remove(self, step: str) -> None:
        """Remove the file of a step, which no unfinished step needs."""
        with suppress(OSError):  # some systems keep a file that is mapped
            self._file(step).unlink(missing_ok=True)

    def _readable(self, step: str, read: Callable[[Path], T]) -> T:
        """Read a step; if its file is damaged, remove all steps, since those that it was made from may be gone.

        Raises UserError then.
        """
        try:
            return read(self._file(step))
        except (SafetensorError, OSError, ValueError) as error:
            for other in self.folder.iterdir():
                other.unlink(missing_ok=True)
            raise UserError(
                f"the unfinished step {step} in {self.folder} is damaged ({error}); all saved steps in that folder "
                "were removed. Run the same command again; it starts from the beginning"
            ) from error

    def _file(self, step: str) -> Path:
        return self.folder / step


def write_whole(file: Path, write: Callable[[Path], object]) -> None:
    """Let `write` write a file whole or not at all. Raises UserError where the disk is full."""
    partial = file.with_name(f"{file.name}.partial")  # replaces that of an interrupted call
    try:
        write(partial)
        os.replace(partial, file)
    except (OSError, SafetensorError) as error:
        partial.unlink(missing_ok=True)
        raise UserError(
            f"cannot write {file.name} to {file.parent}: {error}; free some space, and run the same command again"
        ) from error
