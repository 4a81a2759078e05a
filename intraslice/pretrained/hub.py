"""The Hugging Face Hub: whether it can be reached, its errors, and a bound for models that are fetched for others."""

import math
import shutil
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from pathlib import Path

import huggingface_hub
from huggingface_hub import constants
from huggingface_hub.errors import GatedRepoError, RepositoryNotFoundError
from huggingface_hub.file_download import repo_folder_name

from intraslice.core.cache import folder_bytes
from intraslice.core.errors import UserError
from intraslice.pretrained.reader import as_user_error

TIMEOUT = 4.0  # seconds
RETRY_SECONDS = 30.0
_answers: dict[bool, float] = {}  # when the Hub last answered, and when it last did not
_lock = threading.Lock()
_being_fetched: list[str] = []  # names of models' folders, in this process; more than once for several threads
_fetched_bytes: dict[str, int] = {}  # that some of them will have
_max_bytes: ContextVar[float] = ContextVar("_max_bytes", default=math.inf)
FETCHED = ".fetched-for-others"  # an empty file in a model's folder; its time is that of the last use


def hub_is_reachable() -> bool:
    """Whether the Hub (or the mirror in HF_ENDPOINT) answers within a few seconds.

    A "no" holds for `RETRY_SECONDS`, a "yes" for the process: should the Hub fail later, its own error says why. Always
    False with HF_HUB_OFFLINE=1.
    """
    if constants.is_offline_mode():
        return False
    if True in _answers or time.monotonic() < _answers.get(False, -math.inf) + RETRY_SECONDS:
        return True in _answers
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
    _answers[reached.is_set()] = time.monotonic()
    return reached.is_set()


@contextmanager
def hub_errors(hub_id: str) -> Iterator[None]:
    """Turn the errors of a request to the Hub into a UserError."""
    with as_user_error(f"could not download {hub_id}", "try again, or name a local folder"):
        try:
            yield
        except GatedRepoError as error:
            message = "{model} is gated; request access on its page, then run `hf auth login` or set HF_TOKEN"
            raise UserError(message, model=hub_id) from error
        except RepositoryNotFoundError as error:
            message = "the Hub has no model {model!r} (or it is private); check the name, or set HF_TOKEN"
            raise UserError(message, model=hub_id) from error


@contextmanager
def fetched_for_others(name: str, max_bytes: int) -> Iterator[None]:
    """While open, the model `name` may be fetched into the Hub's cache, by code that calls `make_room` before.

    Models that were fetched so are removed, the least recently used first, so that they take at most `max_bytes`.
    Models that were there before stay.
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
        _being_fetched.append(folder.name)
    token = _max_bytes.set(max_bytes if is_fetched_here else math.inf)
    try:
        yield
    finally:
        _max_bytes.reset(token)
        with _lock:
            _being_fetched.remove(folder.name)
            if folder.name not in _being_fetched:
                _fetched_bytes.pop(folder.name, None)
            if is_fetched_here and folder.is_dir():
                if [*folder.iterdir()] == [marker]:  # nothing was fetched
                    shutil.rmtree(folder, ignore_errors=True)
                else:
                    marker.touch()
                    _remove_fetched(max_bytes)


def make_room(name: str, needed: int) -> None:
    """Before `needed` bytes of the model `name` are fetched: remove other fetched models, if there is a bound.

    Raises UserError if they do not fit, or not beside those that are in use.
    """
    max_bytes, folder = _max_bytes.get(), repo_folder_name(repo_id=name, repo_type="model")
    if math.isinf(max_bytes):
        return
    with _lock:
        _fetched_bytes[folder] = needed
        if needed > max_bytes or _remove_fetched(max_bytes) > max_bytes:
            del _fetched_bytes[folder]
            raise UserError(
                "{name} takes {needed:,.0f} MB of disk, and models from the Hub may take {limit:,.0f} MB together; use "
                "a smaller model, or try again when no other is being loaded",
                name=name,
                needed=needed / 1e6,
                limit=max_bytes / 1e6,
            )


def _remove_fetched(max_bytes: float) -> int:
    """Remove the least recently used of the fetched models, as far as needed and possible. The bytes of the others."""
    markers = Path(constants.HF_HUB_CACHE).glob(f"*/{FETCHED}")
    fetched = [(file.parent.name not in _being_fetched, -file.stat().st_mtime_ns, file.parent) for file in markers]
    total = left = 0
    for is_unused, _, folder in sorted(fetched):
        size = max(folder_bytes(folder), _fetched_bytes.get(folder.name, 0))
        total += size
        if is_unused and total > max_bytes:
            shutil.rmtree(folder, ignore_errors=True)
        else:
            left += size
    return left
