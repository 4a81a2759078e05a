"""Counts wrong room codes by network address, so that nobody finds a room by trying codes."""

from __future__ import annotations

import math
import time
from collections import deque
from threading import Lock

from .. import limits

MAX_ADDRESSES = 10_000  # that are remembered; the one with the oldest wrong code is forgotten first


class WrongCodes:
    """The wrong codes of the last `WRONG_CODE_SECONDS` by address."""

    def __init__(self) -> None:
        self._times: dict[str, deque[float]] = {}
        self._lock = Lock()

    def count(self, address: str) -> None:
        """Record a wrong code."""
        with self._lock:
            times = self._times.pop(address, deque(maxlen=limits.WRONG_CODES.value))
            times.append(time.monotonic())
            self._times[address] = times
            while len(self._times) > MAX_ADDRESSES:
                del self._times[next(iter(self._times))]

    def wait(self, address: str) -> int:
        """Seconds until the address may try another code; 0 where it may now."""
        times = self._times.get(address)
        if times is None or len(times) < limits.WRONG_CODES.value:
            return 0
        return max(0, math.ceil(times[0] + limits.WRONG_CODE_SECONDS - time.monotonic()))
