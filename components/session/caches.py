"""Dictionaries bounded by bytes: the page's models, calibrations and slices are many and large, memory is not."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Hashable
from typing import Any, Generic, NamedTuple, TypeVar

from transformers import PreTrainedModel

from components.session.keys import CalibrationKey, SliceKey
from intraslice.config import SliceConfig
from intraslice.evaluation.perplexity import Losses
from intraslice.loading import LoadedModel
from intraslice.planning.ratios import SlicePlan

Key = TypeVar("Key", bound=Hashable)
Value = TypeVar("Value")


class BoundedCache(Generic[Key, Value]):
    """The most recently used values whose sizes sum to at most `limit` bytes; the newest stays even if it is larger.

    Safe to use from several threads. A value that falls out lives on for whoever still holds it.
    """

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self._lock = threading.Lock()
        self._held: OrderedDict[Key, tuple[Value, int]] = OrderedDict()

    def get(self, key: Key) -> Value | None:
        """The value, which counts as used now, or None."""
        with self._lock:
            if key not in self._held:
                return None
            self._held.move_to_end(key)
            return self._held[key][0]

    def put(self, key: Key, value: Value, size: int) -> Value:
        """Keep `value` of `size` bytes and return it; the least recently used ones make room."""
        with self._lock:
            self._held.pop(key, None)
            self._held[key] = (value, size)
            while len(self._held) > 1 and self.size > self.limit:
                self._held.popitem(last=False)
        return value

    @property
    def size(self) -> int:
        """Bytes held now."""
        return sum(size for _, size in self._held.values())


class Made(NamedTuple, Generic[Value]):
    """What was made by a calibration on so many sequences."""

    value: Value
    sequences: int


class Caches:
    """What the page keeps in memory, each kind by what it was made of, and how much of it.

    Models, calibrations and slices share five eighths of the `free` bytes; the rest is for the work itself. Plans and
    perplexities are small and counted by the piece.
    """

    def __init__(self, free: int) -> None:
        eighth = free // 8
        self.models: BoundedCache[tuple[str, str], LoadedModel] = BoundedCache(2 * eighth)
        self.calibrations: BoundedCache[CalibrationKey, Any] = BoundedCache(2 * eighth)
        self.settling: BoundedCache[CalibrationKey, list] = BoundedCache(100)
        self.slices: BoundedCache[SliceKey, Made[PreTrainedModel]] = BoundedCache(eighth)
        self.plans: BoundedCache[tuple[CalibrationKey, str, SliceConfig], SlicePlan] = BoundedCache(2_000)
        self.curves: BoundedCache[SliceKey, dict[float, float]] = BoundedCache(10_000)  # perplexity by sparsity
        self.losses: BoundedCache[SliceKey, Made[Losses]] = BoundedCache(10_000)


def bytes_of(model: PreTrainedModel) -> int:
    """Of a model's weights."""
    return sum(parameter.nbytes for parameter in model.parameters())
