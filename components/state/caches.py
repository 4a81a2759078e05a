"""Memory: bounded caches, and what running jobs need beside them.

Each cache has a maximum number of entries, and all of the process share one `BUDGET` of bytes. When it is full, it
evicts the large entries that were used least recently. It also evicts those that have not been used for a while. Work
that needs much memory waits for earlier work of its kind, then for free memory (`JobMemory`).
"""

import ctypes
import math
import threading
import time
from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from itertools import takewhile
from operator import attrgetter
from typing import Any, Generic, NamedTuple, TypeVar
from weakref import WeakSet, WeakValueDictionary

import numpy as np
from torch import Tensor
from torch.nn import Module
from transformers import PreTrainedModel

from intraslice.evaluation.perplexity import DenseStates, Losses
from intraslice.loading import LoadedModel
from intraslice.pretrained.memory import available_bytes
from intraslice.recovery.registry import training_bytes

from .. import limits
from ..i18n.language import lazy_gettext
from ..jobs.job import Job
from ..jobs.status import Status
from .request import CalibrationKey, SliceKey

Key = TypeVar("Key", bound=Hashable)
Value = TypeVar("Value")
# Of a curve over sparsities: calibration, method, and the slicing config's fields without the sparsity.
CurveKey = tuple[CalibrationKey, str, frozenset[tuple[str, Any]]]

LARGE = 2**20  # bytes from which the budget may evict an entry; it counts smaller ones too, but never evicts them
NUMBER_BYTES = 32  # of a number in a list
OWN_MODULES = (f"{__name__.partition('.')[0]}.", "intraslice.")
WAIT_SECONDS = 60.0  # for memory that other jobs use
LOOK = 1.0  # seconds between two looks


@dataclass(eq=False)
class _Entry(Generic[Value]):
    """A value. One that `is_kept` stays although it is not used, as long as there is room."""

    value: Value
    size: int  # bytes, when it was stored
    last_used: float
    parts: dict[int, int] | None  # bytes by address of a value that does not grow
    is_kept: bool = False


def identities_in(key: object) -> tuple[str, ...]:
    """The identities of the loaded models that a cache key names."""
    if isinstance(key, CalibrationKey):
        return (key.identity,)
    return tuple(identity for part in key for identity in identities_in(part)) if isinstance(key, tuple) else ()


class BoundedCache(Generic[Key, Value]):
    """The `max_entries` most recently used values, as long as they fit into `BUDGET`. Thread-safe.

    A value is found as long as the models that its key names have the weights with which it was stored. One that
    `grows` may take more memory later; otherwise its bytes are counted once, or taken to be `entry_bytes`.
    """

    def __init__(self, max_entries: float = math.inf, grows: bool = True, entry_bytes: int | None = None) -> None:
        self.max_entries, self.grows, self.entry_bytes = max_entries, grows, entry_bytes
        self._lock = threading.Lock()
        # By key and identities, the least recently used first.
        self._entries: dict[tuple[Key, tuple[str, ...]], _Entry[Value]] = {}
        BUDGET.caches.add(self)

    def get(self, key: Key) -> Value | None:
        """The value, which is marked as used now, or None."""
        identified = key, identities_in(key)
        with self._lock:
            entry = self._entries.pop(identified, None)
            if entry is None:
                return None
            self._entries[identified] = entry
            entry.last_used = time.monotonic()
            return entry.value

    def put(self, key: Key, value: Value) -> Value:
        """Store `value` and return it; may evict the least recently used entry, and entries of other caches."""
        parts = bytes_in(value) if self.entry_bytes is None else {id(value): self.entry_bytes}
        entry = _Entry(value, sum(parts.values()), time.monotonic(), None if self.grows else parts)
        identified = key, identities_in(key)
        with self._lock:
            self._entries.pop(identified, None)
            self._entries[identified] = entry
            if len(self._entries) > self.max_entries:
                del self._entries[next(iter(self._entries))]
        if entry.size >= LARGE:
            BUDGET.make_room(value)
        return value

    def keep(self, key: Key) -> None:
        """Do not evict the value for being unused, if it is cached."""
        with self._lock:
            if entry := self._entries.get((key, identities_in(key))):
                entry.is_kept = True

    def drop(self, entry: _Entry[Any]) -> None:
        """Remove an entry, if it is still cached."""
        with self._lock:
            for key in [key for key, cached in self._entries.items() if cached is entry]:
                del self._entries[key]

    def entries(self) -> list[_Entry[Any]]:
        """The entries cached now."""
        with self._lock:
            return list(self._entries.values())


class Budget:
    """The bytes that all caches of this process may hold together."""

    def __init__(self) -> None:
        self.caches: WeakSet[BoundedCache[Any, Any]] = WeakSet()
        self.max_bytes: float = math.inf
        self._lock = threading.Lock()
        self._timer: threading.Timer | None = None  # runs `evict_unused`

    def held_bytes(self) -> int:
        """Bytes held now; memory that several values share counts once."""
        large, small_bytes = self._sizes()
        return small_bytes + _together(large.values())

    def make_room(self, newest: object, max_bytes: float = math.inf) -> None:
        """Evict the least recently used entries until the rest fits, also into `max_bytes`, but never `newest`."""
        max_bytes, evicts = min(max_bytes, self.max_bytes), False
        with self._lock:
            large, small_bytes = self._sizes()
            for entry in sorted((entry for entry in large if entry.value is not newest), key=attrgetter("last_used")):
                if small_bytes + _together(large.values()) <= max_bytes:
                    break
                self._drop(entry)
                del large[entry]
                evicts = True
            if self._timer is None:
                self._start_timer(limits.UNUSED_SECONDS.value)
        if evicts:
            return_freed_memory()

    def release(self, needed: int, free_bytes: Callable[[], int], in_use: object) -> bool:
        """Return memory to the operating system, then evict entries but `in_use`; whether `needed` bytes are free."""
        if free_bytes() < needed:
            return_freed_memory()
        if (missing := needed - free_bytes()) > 0:
            self.make_room(in_use, self.held_bytes() - missing)
        return free_bytes() >= needed

    def evict_unused(self) -> None:
        """Evict large entries that have not been used for a while, and schedule the next check."""
        oldest = time.monotonic() - limits.UNUSED_SECONDS.value
        with self._lock:
            self._timer = None
            large = [entry for entry in self._entries() if entry.size >= LARGE and not entry.is_kept]
            for entry in large:
                if entry.last_used <= oldest:
                    self._drop(entry)
            if uses := [entry.last_used for entry in large if entry.last_used > oldest]:
                self._start_timer(min(uses) - oldest)
        return_freed_memory()

    def _drop(self, entry: _Entry[Any]) -> None:
        for cache in list(self.caches):
            cache.drop(entry)

    def _start_timer(self, seconds: float) -> None:
        self._timer = threading.Timer(seconds, self.evict_unused)
        self._timer.daemon = True
        self._timer.start()

    def _entries(self) -> list[_Entry[Any]]:
        return [entry for cache in list(self.caches) for entry in cache.entries()]

    def _sizes(self) -> tuple[dict[_Entry[Any], dict[int, int]], int]:
        """The current bytes by address of each large entry, and the bytes of all others."""
        entries = self._entries()
        large = [entry for entry in entries if entry.size >= LARGE]
        parts = {entry: bytes_in(entry.value) if entry.parts is None else entry.parts for entry in large}
        return parts, sum(entry.size for entry in entries if entry.size < LARGE)


BUDGET = Budget()


class CachedEntry(NamedTuple, Generic[Value]):
    """A value, and the number of calibration sequences that it was computed from."""

    value: Value
    sequences: int


class Caches:
    """All that the page keeps in memory, by what it was computed from; small values are also bounded by number."""

    def __init__(self, free_bytes: int) -> None:
        BUDGET.max_bytes = free_bytes * limits.CACHE_SHARE.value / 100
        # Left for running jobs: of each kind at most half of what is free, since several kinds run at once.
        self.job_bytes = min(free_bytes - BUDGET.max_bytes, free_bytes / 2)
        self.models: BoundedCache[tuple[str, str], LoadedModel] = BoundedCache()
        self.calibrations: BoundedCache[CalibrationKey, Any] = BoundedCache()
        self.partial_sources: BoundedCache[CalibrationKey, dict[int, Any]] = BoundedCache(100)
        self.slices: BoundedCache[SliceKey, CachedEntry[PreTrainedModel]] = BoundedCache(grows=False)
        self.curves: BoundedCache[CurveKey, dict[float, float]] = BoundedCache(10_000)  # perplexity by sparsity
        self.losses: BoundedCache[SliceKey, CachedEntry[Losses]] = BoundedCache(10_000)
        self.states: BoundedCache[CalibrationKey, DenseStates] = BoundedCache(20)


class JobMemory:
    """What work of one kind that runs at once needs together, kept to the part that the caches leave.

    Kinds do not wait for each other: a calibration may go on only after a slice. Jobs wait `max_wait` seconds at most.
    """

    def __init__(self, caches: Caches, device: str, max_wait: float = math.inf) -> None:
        self._caches, self._device, self._max_wait = caches, device, max_wait
        self._needed: dict[Job, int] = {}  # bytes, in order of arrival

    def can_train(self, recovery: str, dense: PreTrainedModel, weights: int, length: int) -> bool:
        """Whether training a slice of `dense` in the background leaves half of the jobs' memory to others."""
        return training_bytes(recovery, dense, weights, length) <= self._caches.job_bytes / 2

    @contextmanager
    def reserved(self, job: Job, needed: int, in_use: object) -> Iterator[None]:
        """Wait until earlier work leaves `needed` bytes, then until they are free; they count as needed while open.

        The caches make room, except for `in_use`, and other jobs give back what they use in a while: the wait for them
        ends after `WAIT_SECONDS`, and there is none where so much is never free. The caller checks what is free then.
        """
        self._needed[job], begin = needed, time.monotonic()
        try:
            while (ahead := self._ahead(job)) and time.monotonic() < begin + self._max_wait:
                job.emit(Status(lazy_gettext("Waiting for memory; jobs ahead: {count}", count=ahead)))
                job.sleep(LOOK)
            until = time.monotonic() + (WAIT_SECONDS if needed <= self._caches.job_bytes else 0)
            free_bytes = partial(available_bytes, self._device)
            while not BUDGET.release(needed, free_bytes, in_use) and time.monotonic() < until:
                job.emit(Status(lazy_gettext("Waiting for memory")))
                job.sleep(LOOK)
            yield
        finally:
            self._needed.pop(job, None)

    def _ahead(self, job: Job) -> int:
        """The number of jobs before this one, if they leave it too little memory."""
        earlier = list(takewhile(lambda other: other is not job, self._needed))
        needed = sum(self._needed[other] for other in (*earlier, job))
        return len(earlier) if needed > self._caches.job_bytes else 0


def _together(several: Iterable[dict[int, int]]) -> int:
    """Bytes of values; memory that they share counts once."""
    return sum({address: size for parts in several for address, size in parts.items()}.values())


def bytes_in(value: object) -> dict[int, int]:
    """Bytes that a value holds, by address: exact for nested tensors and arrays, approximate for all else."""
    sizes: dict[int, int] = {}
    seen: set[int] = set()
    pending = [value]
    while pending:
        item = pending.pop()
        if id(item) in seen or isinstance(item, int | float | None):
            continue
        seen.add(id(item))
        if isinstance(item, Tensor):
            storage = item.untyped_storage()
            sizes[storage.data_ptr()] = storage.nbytes()
        elif isinstance(item, np.ndarray):
            sizes[id(item)] = item.nbytes
        else:
            members = list(_members(item))
            is_numeric = bool(members) and isinstance(members[0], int | float)
            sizes[id(item)] = 64 + (len(item) if isinstance(item, str | bytes) else len(members) * NUMBER_BYTES)
            pending.extend([] if is_numeric else members)
    return sizes


def _members(value: object) -> Iterator[object]:
    """The objects that a value holds: parameters and buffers, items, or attributes."""
    if isinstance(value, Module):
        yield from (*value.parameters(), *value.buffers())
    elif isinstance(value, Mapping) and not isinstance(value, WeakValueDictionary):
        yield from list(value.values())
    elif isinstance(value, list | tuple | set | frozenset):
        yield from list(value)
    elif type(value).__module__.startswith(OWN_MODULES):
        yield from list(getattr(value, "__dict__", {}).values())


def return_freed_memory() -> None:
    """Return freed memory to the operating system where the C library supports it (glibc's `malloc_trim`)."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)
