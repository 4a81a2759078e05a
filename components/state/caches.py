"""Dictionaries that are bounded, one by one by the piece and all together by bytes: memory is not.

A process has one memory, so all its caches share one `BUDGET`. When it is full the least valuable goes: what takes the
fewest seconds a byte to make again and was not used for longest (GreedyDual-Size, Cao and Irani 1997). What nobody uses
for a while goes too.
"""

from __future__ import annotations

import ctypes
import math
import threading
import time
from collections import Counter, OrderedDict
from collections.abc import Hashable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Generic, NamedTuple, TypeVar
from weakref import WeakSet

import numpy as np
from torch import Tensor
from torch.nn import Module
from transformers import PreTrainedModel

from components.jobs import limits
from components.state.request import CalibrationKey, SliceKey
from intraslice.evaluation.divergence import DenseStates
from intraslice.evaluation.perplexity import Losses
from intraslice.loading import LoadedModel

Key = TypeVar("Key", bound=Hashable)
Value = TypeVar("Value")

LARGE = 2**20  # bytes of what is looked at one by one; smaller ones are bounded by the piece
NUMBER = 32  # bytes of one in a list
OURS = ("components.", "intraslice.")


@dataclass(eq=False)
class _Entry(Generic[Value]):
    """A value, its bytes when it came, and where the budget's clock and the world's stood when it was used."""

    value: Value
    weight: int
    clock: float
    moment: float


class BoundedCache(Generic[Key, Value]):
    """The `limit` most recently used values, as far as the BUDGET of bytes has room for them.

    Safe to use from several threads. A value that falls out lives on for whoever still holds it.

    Args:
        seconds: to make a value again, about.
    """

    def __init__(self, limit: float = math.inf, seconds: float = 1.0) -> None:
        self.limit, self.seconds = limit, seconds
        self._lock = threading.Lock()
        self._held: OrderedDict[Key, _Entry[Value]] = OrderedDict()
        BUDGET.caches.add(self)

    def get(self, key: Key) -> Value | None:
        """The value, which counts as used now, or None."""
        with self._lock:
            entry = self._held.get(key)
            if entry is None:
                return None
            self._held.move_to_end(key)
            entry.clock, entry.moment = BUDGET.clock, time.monotonic()
            return entry.value

    def put(self, key: Key, value: Value) -> Value:
        """Keep `value` and return it; the least recently used makes room, and what BUDGET chooses."""
        weight = sum(bytes_in(value).values())
        with self._lock:
            self._held.pop(key, None)
            self._held[key] = _Entry(value, weight, BUDGET.clock, time.monotonic())
            if len(self._held) > self.limit:
                self._held.popitem(last=False)
        if weight >= LARGE:
            BUDGET.keep(value)
        return value

    def drop(self, entry: _Entry[Any]) -> None:
        """Forget an entry, if it is still there."""
        with self._lock:
            for key in [key for key, held in self._held.items() if held is entry]:
                del self._held[key]

    def entries(self) -> list[_Entry[Any]]:
        """What is held now."""
        with self._lock:
            return list(self._held.values())


class Budget:
    """What all caches of this process may hold together, in bytes."""

    def __init__(self) -> None:
        self.caches: WeakSet[BoundedCache[Any, Any]] = WeakSet()
        self.clock = 0.0  # the value of what went last: later uses count from there
        self.bytes: float = math.inf
        self._lock = threading.Lock()
        self._timer: threading.Timer | None = None  # until the next look at what is unused

    def set(self, free: int) -> None:
        """Give the caches their share of so many free bytes."""
        self.bytes = free * limits.CACHE_SHARE.value / 100

    def held(self) -> int:
        """Bytes held now; what several values share counts once."""
        large, small = self._large()
        return small + sum({address: size for _, _, parts in large for address, size in parts.items()}.values())

    def keep(self, newest: object) -> None:
        """Let the least valuable go until what is held fits, and never the newest. Who shares bytes has a part each."""
        with self._lock:
            large, total = self._large()
            sizes = {address: size for _, _, parts in large for address, size in parts.items()}
            sharers = Counter(address for _, _, parts in large for address in parts)
            total += sum(sizes.values())
            large = [held for held in large if held[1].value is not newest]
            gone = bool(large) and total > self.bytes
            while large and total > self.bytes:
                shares = [sum(size / sharers[part] for part, size in parts.items()) for _, _, parts in large]
                values = [
                    entry.clock + cache.seconds * LARGE / max(share, 1.0)
                    for (cache, entry, _), share in zip(large, shares, strict=True)
                ]
                least = min(values)
                cache, entry, parts = large.pop(values.index(least))
                cache.drop(entry)
                sharers.subtract(parts.keys())
                total -= sum(size for address, size in parts.items() if not sharers[address])
                self.clock = max(self.clock, least)
            if self._timer is None:
                self._look_after(limits.UNUSED_SECONDS.value)
        if gone:
            del cache, entry, large  # or what went would be held until here
            return_freed_memory()

    def rest(self) -> None:
        """Let go what is large and was not used for a while, and look again when the next has its time."""
        with self._lock:
            self._timer = None
            oldest = time.monotonic() - limits.UNUSED_SECONDS.value
            large = [(entry.moment, cache, entry) for cache, entry in self._held() if entry.weight >= LARGE]
            unused = [(cache, entry) for moment, cache, entry in large if moment <= oldest]
            for cache, entry in unused:
                cache.drop(entry)
            if left := [moment for moment, _, _ in large if moment > oldest]:
                self._look_after(min(left) - oldest)
        if unused:
            del cache, entry, large, unused  # or what went would be held until here
            return_freed_memory()

    def _look_after(self, seconds: float) -> None:
        self._timer = threading.Timer(seconds, self.rest)
        self._timer.daemon = True
        self._timer.start()

    def _held(self) -> list[tuple[BoundedCache[Any, Any], _Entry[Any]]]:
        return [(cache, entry) for cache in list(self.caches) for entry in cache.entries()]

    def _large(self) -> tuple[list[tuple[BoundedCache[Any, Any], _Entry[Any], dict[int, int]]], int]:
        """The large entries with the bytes they hold now, some grow, and the bytes of all others."""
        held = self._held()
        large = [(cache, entry, bytes_in(entry.value)) for cache, entry in held if entry.weight >= LARGE]
        return large, sum(entry.weight for _, entry in held if entry.weight < LARGE)


BUDGET = Budget()


class CachedEntry(NamedTuple, Generic[Value]):
    """What was made by a calibration on so many sequences."""

    value: Value
    sequences: int


class Caches:
    """What the page keeps in memory, each kind by what it was made of. `free` are the bytes that there are.

    Models, calibrations and slices are bounded by the budget alone; what is small by the piece too.
    """

    def __init__(self, free: int) -> None:
        BUDGET.set(free)
        self.rest = free - BUDGET.bytes  # is for the work
        self.models: BoundedCache[tuple[str, str], LoadedModel] = BoundedCache(seconds=10)
        self.calibrations: BoundedCache[CalibrationKey, Any] = BoundedCache(seconds=60)
        self.settling: BoundedCache[CalibrationKey, list[Any]] = BoundedCache(100, seconds=0.2)
        self.slices: BoundedCache[SliceKey, CachedEntry[PreTrainedModel]] = BoundedCache(seconds=3)
        self.curves: BoundedCache[SliceKey, dict[float, float]] = BoundedCache(10_000)  # perplexity by sparsity
        self.losses: BoundedCache[SliceKey, CachedEntry[Losses]] = BoundedCache(10_000)
        self.states: BoundedCache[CalibrationKey, DenseStates] = BoundedCache(20)


def bytes_in(value: object) -> dict[int, int]:
    """Bytes that a value holds, by address: tensors and arrays wherever in it, and about what else there is."""
    found: dict[int, int] = {}
    seen: set[int] = set()
    rest = [value]
    while rest:
        one = rest.pop()
        if id(one) in seen or isinstance(one, int | float | None):
            continue
        seen.add(id(one))
        if isinstance(one, Tensor):
            storage = one.untyped_storage()
            found[storage.data_ptr()] = storage.nbytes()
        elif isinstance(one, np.ndarray):
            found[id(one)] = one.nbytes
        else:
            inside = list(_inside(one))
            numbers = bool(inside) and isinstance(inside[0], int | float)
            found[id(one)] = 64 + len(one if isinstance(one, str | bytes) else inside) * NUMBER
            rest.extend([] if numbers else inside)
    return found


def _inside(value: object) -> Iterator[object]:
    """What a value consists of."""
    if isinstance(value, Module):
        yield from (*value.parameters(), *value.buffers())
    elif isinstance(value, Mapping):
        yield from list(value.values())
    elif isinstance(value, list | tuple | set | frozenset):
        yield from list(value)
    elif type(value).__module__.startswith(OURS):
        yield from list(getattr(value, "__dict__", {}).values())


def return_freed_memory() -> None:
    """Return freed memory to the system, where the C library keeps it."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)
