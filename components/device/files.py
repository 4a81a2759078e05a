"""The GGUF files of a setting, dense and sliced, which browsers download to run the models themselves.

A file is named by a digest of the settings it depends on, so that all who want the same share one file, and a browser
that has it asks for no more than its ETag.
"""

import hashlib
import threading
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Literal, NamedTuple, get_args

from intraslice import __version__
from intraslice.checkpoints.to_gguf import require_deci_layers, write_gguf
from intraslice.core import checks
from intraslice.pretrained.wheels import file_sha256

from .. import limits
from ..i18n.language import lazy_gettext
from ..jobs.job import Job
from ..jobs.status import Status
from ..state.request import DENSE, Request
from ..state.session import Session
from ..ui.downloads import WRITERS, Downloads
from . import wllama

FileType = Literal["q8_0", "f16"]  # q8_0 is the smallest that changes answers little
FILE_TYPES: tuple[FileType, ...] = get_args(FileType)
BYTES_PER_PARAMETER = {"q8_0": 34 / 32, "f16": 2.0}  # q8_0: 32 values and their scale take 34 bytes


class ModelFile(NamedTuple):
    """A GGUF file, its size in bytes, and the SHA-256 of its content."""

    path: Path
    size: int
    sha256: str


class ModelFiles:
    """GGUF files on disk, the newest within `limits.DEVICE_FILES` bytes. One for all who ask for the same setting."""

    def __init__(self) -> None:
        self._downloads = Downloads(limits.DEVICE_FILES, limits.DEVICE_FILE_SECONDS)
        self._written: dict[str, ModelFile] = {}
        self._lock = threading.Lock()

    def find(self, name: str) -> ModelFile | None:
        """The file of this name, or None if it is not there (any more)."""
        with self._lock:
            self._written = {other: file for other, file in self._written.items() if file.path.is_file()}
            found = self._written.get(name)
        if found is not None:
            self._downloads.touch(found.path)
        return found

    def prepare(self, job: Job, session: Session, request: Request, file_type: FileType = "q8_0") -> list[ModelFile]:
        """The dense model's file, and the sliced one's unless nothing is removed; written if they are not there.

        Raises UserError if llama.cpp cannot run them, without room or WebAssembly files, or for another type.
        """
        checks.one_of("Model files", file_type, FILE_TYPES)
        job.share(("device", "engine"), _fetch_engine)
        files = []
        for method in (DENSE, *(["intraslice"] if request.slicing.sparsity else [])):
            name = file_name(request, method, file_type)
            write = partial(self._write, session=session, request=request, method=method, file_type=file_type)
            files.append(self.find(name) or job.share(("device", name), write))
        return files

    def _write(self, job: Job, session: Session, request: Request, method: str, file_type: FileType) -> ModelFile:
        # The slice is in the cache then: no job holds one while it waits.
        writer(job, session, request, method, file_type)
        name = file_name(request, method, file_type)
        with WRITERS.held(job):
            write, size = writer(job, session, request, method, file_type)
            job.emit(Status(lazy_gettext("Writing the files for your device")))
            with job.waiting():
                path = self._downloads.put(name, write, size)
                file = ModelFile(path, path.stat().st_size, file_sha256(path))
            with self._lock:
                self._written[name] = file
        return file


def _fetch_engine(job: Job) -> None:
    if not wllama.is_fetched():
        job.emit(Status(lazy_gettext("Fetching the WebAssembly files")))
        with job.waiting():
            wllama.fetch()


def file_name(request: Request, method: str, file_type: FileType = "q8_0") -> str:
    """The file's name, which differs if a setting does, or the weights that were last loaded under the model's name."""
    calibration = request.calibration
    what = (calibration.model, calibration.dtype) if method == DENSE else request.slice_key(method)
    key = repr((__version__, file_type, what, calibration.identity))
    return f"{hashlib.sha256(key.encode()).hexdigest()[:32]}.gguf"


def writer(
    job: Job, session: Session, request: Request, method: str, file_type: FileType = "q8_0"
) -> tuple[Callable[[Path], object], int]:
    """What writes the file of a setting's model, and its approximate bytes. Raises UserError if llama.cpp has none."""
    loaded = session.calibrations.load(job, request.calibration)
    require_deci_layers(loaded.model)
    model = loaded.model if method == DENSE else session.slice(job, request)

    def write(path: Path) -> None:
        write_gguf(model, loaded.tokenizer, path, file_type, loaded.name, progress=False)

    return write, approximate_bytes(sum(parameter.numel() for parameter in model.parameters()), file_type)


def approximate_bytes(parameters: int, file_type: FileType) -> int:
    """The approximate size of a file with so many parameters."""
    return round(parameters * BYTES_PER_PARAMETER[file_type])
