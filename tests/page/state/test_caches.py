"""What all caches of the page hold together: one budget, of which the least valuable goes first."""

import threading
from collections.abc import Callable
from types import SimpleNamespace

import pytest
import torch

from components.jobs import limits
from components.state import caches
from components.state.caches import BUDGET, BoundedCache, bytes_in


@pytest.fixture
def budget(monkeypatch) -> None:
    """Room for three megabytes in all caches of this process, and none is there yet."""
    monkeypatch.setattr(BUDGET, "caches", type(BUDGET.caches)())
    monkeypatch.setattr(BUDGET, "max_bytes", 3 * 2**20 + 2**16)
    monkeypatch.setattr(BUDGET, "inflation", 0.0)


def megabytes(count: int) -> torch.Tensor:
    return torch.zeros(count, 2**20, dtype=torch.uint8)


def test_the_least_valuable_goes_from_whatever_cache(budget) -> None:
    cheap, dear = BoundedCache(seconds=1), BoundedCache(seconds=10)
    dear.put("a", megabytes(1))
    cheap.put("b", megabytes(1))
    cheap.put("c", megabytes(1))
    cheap.get("b")
    assert BUDGET.held_bytes() <= BUDGET.max_bytes
    cheap.put("d", megabytes(1))
    kept = [key for cache in (cheap, dear) for key in "abcd" if cache.get(key) is not None]
    assert len(kept) == 3
    assert {"a", "d"} < set(kept)
    for number in range(60):  # what costs much to make goes too, if nobody asks for it
        cheap.put(number, megabytes(1))
    assert dear.get("a") is None
    assert BUDGET.held_bytes() <= BUDGET.max_bytes


def test_what_is_shared_counts_once(budget) -> None:
    one, other = BoundedCache(), BoundedCache()
    shared = megabytes(2)
    one.put("shared", {"weights": shared})
    other.put("shared", [shared, shared[:1]])
    assert BUDGET.held_bytes() < 2.1 * 2**20
    other.put("own", megabytes(1))
    assert all(cache.get("shared") is not None for cache in (one, other))
    one.put("large", megabytes(9))
    assert one.get("large") is not None  # the newest stays
    assert (len(one.entries()), len(other.entries())) == (1, 0)


def test_bytes_are_those_of_tensors_wherever_they_are(as_loaded, tiny_llama_gqa) -> None:
    loaded = as_loaded(tiny_llama_gqa())
    weights = sum(parameter.nbytes for parameter in loaded.model.parameters())
    assert weights <= sum(bytes_in((loaded, loaded.model)).values()) < weights + 2**18


def test_only_what_may_grow_is_counted_again(budget, monkeypatch) -> None:
    fixed, growing, counted = BoundedCache(grows=False), BoundedCache(), []
    monkeypatch.setattr(caches, "bytes_in", lambda value: counted.append(value) or bytes_in(value))
    first, second = fixed.put("a", [megabytes(1)]), growing.put("b", [megabytes(1)])
    assert counted == [first, second, second]
    second.append(megabytes(1))
    assert BUDGET.held_bytes() > 3 * 2**20
    assert counted[3:] == [second]


def test_what_nobody_uses_goes_after_a_while(budget, monkeypatch) -> None:
    now, looks = [100.0], []

    class Timer(threading.Thread):
        """Notes when it would look at the caches."""

        def __init__(self, seconds: float, look: Callable[[], None]) -> None:
            super().__init__(target=lambda: None)
            looks.append((now[0] + seconds, look))

    monkeypatch.setenv(limits.UNUSED_SECONDS.variable, "60")
    monkeypatch.setattr(BUDGET, "_timer", None)
    monkeypatch.setattr(caches, "time", SimpleNamespace(monotonic=lambda: now[0]))
    monkeypatch.setattr(caches, "threading", SimpleNamespace(Timer=Timer, Lock=threading.Lock))
    cache = BoundedCache()
    for key, value in (("used", megabytes(1)), ("unused", megabytes(1)), ("small", 1)):
        cache.put(key, value)
    now[0] = 130.0
    cache.get("used")
    for moment, left in ((160.0, {"used", "small"}), (190.0, {"small"})):
        now[0], look = looks.pop()
        assert now[0] == moment
        assert not looks
        look()
        assert {key for key, _ in cache._entries} == left
    assert not looks


def test_memory_that_is_needed_is_taken_from_the_caches_but_not_from_what_is_in_use(budget) -> None:
    cache, in_use = BoundedCache(), megabytes(1)
    cache.put("model", in_use)
    for key in "ab":
        cache.put(key, megabytes(1))

    def free_bytes() -> int:
        return 4 * 2**20 - BUDGET.held_bytes()

    BUDGET.release(2**19, free_bytes, in_use)
    assert len(cache.entries()) == 3
    BUDGET.release(2 * 2**20, free_bytes, in_use)
    assert len(cache.entries()) == 2
    BUDGET.release(100 * 2**20, free_bytes, in_use)
    assert [entry.value is in_use for entry in cache.entries()] == [True]
