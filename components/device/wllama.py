"""The WebAssembly build of llama.cpp that runs in browsers: two files of the npm package wllama, fetched once.

They are not part of this project: they are pinned by their SHA-256, fetched into the cache by npm where that is
installed, else from the CDN that wllama's documentation names, and served by the page itself.
"""

import logging
import os
import shutil
import subprocess
import tarfile
from pathlib import Path

import httpx

from intraslice.core.cache import installation
from intraslice.core.errors import UserError, first_line
from intraslice.pretrained.wheels import file_sha256, wheels_folder

from .. import limits

log = logging.getLogger(__name__)
PACKAGE, VERSION, LICENCE = "@wllama/wllama", "3.13.0", "MIT"
ABOUT = f"{PACKAGE.rpartition('/')[2]} {VERSION} ({LICENCE})"
CDN = f"https://cdn.jsdelivr.net/npm/{PACKAGE}@{VERSION}"
FILES = {  # by the name under which the page serves it: its path in the package, and its SHA-256
    "index.js": ("esm/index.js", "fffd95c16ca191f31f4303664a05189c43d0cb20c52b67276c04e8857b138b64"),
    "wllama.wasm": ("esm/wasm/wllama.wasm", "79ac5be917b71d50571a4f584436a9f6baf6b6e57719d094ed8bd950e9a65780"),
}


def folder() -> Path:
    """The folder of the files, which may not exist."""
    return wheels_folder() / f"wllama-{VERSION}"


def is_fetched() -> bool:
    """Whether both files are there; their content is checked when they are fetched."""
    return all((folder() / name).is_file() for name in FILES)


def fetch() -> Path:
    """The folder of the files, which one process fetches if one is missing or damaged, while others wait for it.

    Raises UserError if neither npm nor the CDN has them, a hash is wrong, or the cache cannot be written.
    """
    target = folder()
    if _intact(target):
        return target
    with installation(target, limits.MAX_ENGINE_BYTES) as temporary:
        if not _intact(target):
            log.info("downloading llama.cpp for browsers, once: 10 MB")
            _download(temporary)
            for name in FILES:
                os.replace(temporary / name, target / name)
            log.info("downloaded llama.cpp for browsers")
    return target


def _intact(home: Path) -> bool:
    return all((home / name).is_file() and file_sha256(home / name) == digest for name, (_, digest) in FILES.items())


def _download(home: Path) -> None:
    """Write both files to `home`. Raises UserError."""
    problems = []
    for way in (_from_npm, _from_cdn):
        try:
            way(home)
        except (OSError, httpx.HTTPError, subprocess.SubprocessError, tarfile.TarError, KeyError) as error:
            problems.append(first_line(error))
        else:
            wrong = [name for name, (_, digest) in FILES.items() if file_sha256(home / name) != digest]
            if not wrong:
                return
            problems.append(f"{', '.join(wrong)}: wrong SHA-256")
    raise UserError(
        "The WebAssembly files that run models in the browser ({package} {version}) could not be fetched: "
        "{problems}. Connect the server to the internet and try again, or run `python -m intraslice device "
        "--fetch` on a machine with internet access, and share or copy its cache folder.",
        package=PACKAGE,
        version=VERSION,
        problems="; ".join(problems),
    )


def _from_npm(home: Path) -> None:
    """Let npm fetch the package with its own registry settings, and unpack the files alone; nothing of it is run."""
    npm = shutil.which("npm")
    if npm is None:
        raise FileNotFoundError("npm is not installed")
    command = [npm, "pack", f"{PACKAGE}@{VERSION}", "--silent", "--ignore-scripts", "--fetch-retries=1"]
    done = subprocess.run(command, cwd=home, capture_output=True, text=True, timeout=limits.ENGINE_SECONDS, check=False)
    packed = next(home.glob("*.tgz"), None)
    if packed is None:
        raise OSError(f"npm: {(done.stderr.strip() or done.stdout.strip() or 'no reason given').splitlines()[0][:200]}")
    with tarfile.open(packed) as archive:
        for name, (path, _) in FILES.items():
            source = archive.extractfile(f"package/{path}")
            if source is None:
                raise KeyError(path)
            with source, (home / name).open("wb") as sink:
                shutil.copyfileobj(source, sink)


def _from_cdn(home: Path) -> None:
    with httpx.Client(timeout=20, follow_redirects=True) as client:
        for name, (path, _) in FILES.items():
            with client.stream("GET", f"{CDN}/{path}") as answer, (home / name).open("wb") as sink:
                answer.raise_for_status()
                for part in answer.iter_bytes():
                    sink.write(part)
                    if sink.tell() > limits.MAX_ENGINE_BYTES:
                        raise OSError(f"{name} is larger than {limits.MAX_ENGINE_BYTES} bytes")
