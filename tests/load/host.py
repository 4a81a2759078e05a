"""A hosted page on this machine, as on a Space, with secrets and hostile models beside it, and the memory it takes."""

import json
import os
import re
import sys
import tempfile
import threading
from collections.abc import Collection, Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import NamedTuple
from unittest.mock import patch

import psutil

from components.gradio_compat.requests import allocated_bytes
from components.limits import CACHE_BYTES, DEVICE_FILES, EXPORTS, MEMORY, MODELS_VARIABLE, UPLOADS
from intraslice.core.cache import cache_folder
from tests.load.inputs import write_models
from tests.support.page.browsing import ROOT, copy_app, running_app

MEBI = 2**20
HOME = Path.home()  # before the page has another
SECRET = "correct-horse-battery"
DISK_BOUND = sum(limit.hosted for limit in (UPLOADS, EXPORTS, DEVICE_FILES, CACHE_BYTES)) / MEBI


class Host(NamedTuple):
    """A hosted page on this machine: all that it has lies in `home`."""

    home: Path
    address: str
    log: Path

    @property
    def server(self) -> str:
        """The folder of the page."""
        return str(self.home / "server")

    @property
    def disk(self) -> float:
        """MiB that the page's folders take beside the weights, which are links."""
        return sum(allocated_bytes(self.home / name) for name in ("uploads", "cache")) / MEBI

    def leaks(self, text: str) -> list[str]:
        """What of the server stands in an answer. Gradio's protocol says where an upload or a download lies."""
        uploads = re.escape(str(self.home / "uploads"))
        text = re.sub(rf'("path": ?"|file=){uploads}[^"]*', "", text.replace("\\/", "/"))
        lines = [SECRET, "root:x:0:0", "limits.limit_cache()", "from components.start import main"]
        folders = [self.home, ROOT, cache_folder(), HOME, Path(sys.prefix), *map(Path, sys.path[1:])]
        told = [str(folder) + "/" for folder in folders if len(folder.parts) > 1]
        return [secret for secret in (*lines, *told, "Traceback (most recent", "site-packages/") if secret in text]


def link_cache(folder: Path, kept: Iterable[str]) -> None:
    """Make a cache folder that has of the usual one these folders, as links."""
    folder.mkdir(exist_ok=True)
    for name in kept:
        (cache_folder() / name).mkdir(parents=True, exist_ok=True)
        (folder / name).symlink_to(cache_folder() / name)


@contextmanager
def hosted(budget: int, count: int) -> Iterator[tuple[Host, dict[str, bool]]]:
    """A page as on a Space, in a folder of its own, that may take so many MiB; with so many models it loads any."""
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder)
        copy_app(place / "server")
        link_cache(place / "cache", ("models", "wheels"))
        for secret in ("server/secret", "cache/secret", "cache/models-secret"):
            (place / f"{secret}.csv").write_text(f"text,{SECRET}\n{SECRET},1\n")
            (place / f"{secret}.json").write_text(json.dumps([{"layer": SECRET, "text": SECRET}]))
        models = write_models(place / "hub", count)
        environment = {
            "SPACE_ID": "somebody/intraslice",
            "HOME": str(place / "server"),
            "INTRASLICE_CACHE": str(place / "cache"),
            "GRADIO_TEMP_DIR": str(place / "uploads"),
            "HF_HUB_CACHE": str(place / "hub"),
            "HF_HUB_OFFLINE": "1",
            "HF_TOKEN": f"hf_{SECRET}",
            "PYTHONDONTWRITEBYTECODE": "1",
            MEMORY.variable: str(budget * MEBI),
            MODELS_VARIABLE: "*" if count else "",
        }
        with (
            patch.dict(os.environ, environment),
            (place / "log").open("w") as output,
            running_app(place / "server", output) as address,
        ):
            yield Host(place, address, place / "log"), models


class Memory:
    """Resident now, and the most while it was looked at, in MiB: of the processes started, and of theirs with them.

    Args:
        ignored: the ids of processes that do not count.
    """

    def __init__(self, ignored: Collection[int] = ()) -> None:
        self._ignored = frozenset(ignored)
        self.most = self.most_of_all = 0
        self._ended = threading.Event()

    def now(self) -> int:
        """Of all of them."""
        children, all_of_them = (psutil.Process().children(recursive) for recursive in (False, True))
        self.most = max(self.most, self._resident(children))
        self.most_of_all = max(self.most_of_all, resident := self._resident(all_of_them))
        return resident

    def watch(self) -> None:
        """Until `end`."""
        while not self._ended.wait(0.5):
            self.now()

    def end(self) -> None:
        """Look no more."""
        self._ended.set()

    def _resident(self, processes: Iterable[psutil.Process]) -> int:
        total = 0
        for process in processes:
            with suppress(psutil.NoSuchProcess):  # it has just ended
                total += process.memory_info().rss if process.pid not in self._ignored else 0
        return total // MEBI
