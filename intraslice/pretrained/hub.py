"""The Hugging Face Hub: whether it can be reached, and a bound for the models that are fetched for others."""

from __future__ import annotations

import functools
import shutil
import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import huggingface_hub
from huggingface_hub import constants
from huggingface_hub.file_download import repo_folder_name

TIMEOUT = 4.0  # seconds
_lock = threading.Lock()
_being_fetched: Counter[str] = Counter()  # names of models' folders, in this process
FETCHED = ".fetched-for-others"  # an empty file in a model's folder; its time is that of the last use


@functools.cache
def hub_is_reachable() -> bool:
    """Whether the Hub (or the mirror in HF_ENDPOINT) answers within a few seconds, asked once per process.

    Always False with HF_HUB_OFFLINE=1.
    """
    if constants.is_offline_mode():
        return False
    reached = threading.Event()

    def request() -> None:
        try:
            response = huggingface_hub.get_session().head(constants.ENDPOINT, timeout=TIMEOUT)
        except Exception:  # no route, no name, no certificate: the Hub is out of reach
            return
        if response.status_code < 400:  # a firewall may answer in place of the Hub, with an error
            reached.set()

    # DNS look-ups have no timeout, so this waits for a thread.
    thread = threading.Thread(target=request, daemon=True)
    thread.start()
    thread.join(TIMEOUT)
    return reached.is_set()


@contextmanager
def fetched_for_others(name: str, max_bytes: int) -> Iterator[None]:
    """While open, the model `name` may be fetched into the Hub's cache; then the cache is bounded.

    Models that were fetched so are removed, the least recently used first, until the others take at most `max_bytes`.
    The last one stays whatever its size, and so does every model that was there before, or is being fetched.
    """
    # In the store that repositories may share, files would stay when their repository is removed.
    constants.HF_HUB_DISABLE_SHARED_BLOBS = True
    folder = Path(constants.HF_HUB_CACHE, repo_folder_name(repo_id=name, repo_type="model"))
    marker = folder / FETCHED
    is_fetched_here = not folder.exists() or marker.exists()
    if is_fetched_here:  # marked before, since the process may be killed meanwhile
        with suppress(OSError):  # of a read-only cache, into which nothing can be fetched
            folder.mkdir(parents=True, exist_ok=True)
            marker.touch()
    with _lock:
        _being_fetched[folder.name] += 1
    try:
        yield
    finally:
        with _lock:
            _being_fetched[folder.name] -= 1
            if not _being_fetched[folder.name]:
                del _being_fetched[folder.name]
        if is_fetched_here and folder.is_dir():
            if [*folder.iterdir()] == [marker]:  # nothing was fetched
                shutil.rmtree(folder, ignore_errors=True)
            else:
                marker.touch()
                _remove_fetched(max_bytes)


def _remove_fetched(max_bytes: int) -> None:
    """Remove all but the most recently used of the fetched models that take at most `max_bytes`, one at least."""
    repos = huggingface_hub.scan_cache_dir(constants.HF_HUB_CACHE).repos
    fetched = [(marker.stat().st_mtime_ns, repo) for repo in repos if (marker := repo.repo_path / FETCHED).exists()]
    kept_bytes = 0
    for place, (_, repo) in enumerate(sorted(fetched, key=lambda entry: -entry[0])):
        kept_bytes += repo.size_on_disk
        if (
            place and kept_bytes > max_bytes and not _being_fetched[repo.repo_path.name]
        ):  # not by `delete_revisions`: copies of a model have equal commit hashes
            shutil.rmtree(repo.repo_path, ignore_errors=True)
