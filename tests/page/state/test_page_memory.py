"""What the page holds in memory: one budget for all caches, and memory that is reserved before a model is loaded."""

import os
import threading
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from types import SimpleNamespace

import pytest
import torch
from huggingface_hub import constants
from tiny_page import in_job, stepwise

from components import limits
from components.jobs.job import Job
from components.state import caches, calibrations
from components.state.caches import BUDGET, BoundedCache, bytes_in
from components.state.session import Session
from intraslice.core.errors import UserError
from intraslice.pretrained import hub, memory
from intraslice.pretrained.memory import MemoryEstimate


@pytest.fixture
def budget(monkeypatch) -> None:
    """Room for three megabytes in all caches of this process, and none is there yet."""
    monkeypatch.setattr(BUDGET, "caches", type(BUDGET.caches)())
    monkeypatch.setattr(BUDGET, "max_bytes", 3 * 2**20 + 2**16)


def megabytes(count: int) -> torch.Tensor:
    return torch.zeros(count, 2**20, dtype=torch.uint8)


def test_the_least_recently_used_goes_from_whatever_cache(budget) -> None:
    one, other = BoundedCache(), BoundedCache()
    for cache, key in ((one, "a"), (other, "b"), (one, "c"), (other, "d")):
        one.get("a")
        cache.put(key, megabytes(1))
    assert [key for cache in (one, other) for key in "abcd" if cache.get(key) is not None] == ["a", "c", "d"]
    assert 3 * 2**20 <= BUDGET.held_bytes() <= BUDGET.max_bytes


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


def test_what_is_not_used_goes_after_a_while(budget, monkeypatch) -> None:
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

    for needed, is_free, left in ((2**19, True, 3), (2 * 2**20, True, 2), (100 * 2**20, False, 1)):
        assert BUDGET.release(needed, free_bytes, in_use) is is_free
        assert len(cache.entries()) == left
    assert cache.get("model") is in_use


@pytest.mark.parametrize("kind", ["models", "uploads"])
def test_a_model_is_loaded_and_an_upload_read_once_those_before_leave_memory(kind, tiny, monkeypatch) -> None:
    session, key, begun = Session(evaluation_tokens=256), tiny.calibration, []
    calibrations_of, begins, may_end = session.calibrations, threading.Event(), threading.Event()
    loaded = in_job(session, calibrations_of.load, key)
    session._caches.job_bytes = 1

    def take_memory(*_: object, **__: object) -> None:
        begun.append(kind)
        begins.set()
        assert may_end.wait(60)
        raise UserError("that is enough")

    def start(name: str) -> Job:
        if kind == "models":
            work = partial(calibrations_of._load_now, key=key._replace(model=name))
        else:
            of_text = key._replace(config=replace(key.config, text=name))
            work = partial(calibrations_of._calibrate_now, key=of_text, loaded=loaded)
        return session.jobs.scheduler.start(name, work)

    monkeypatch.setattr(calibrations, "load_model", take_memory)
    monkeypatch.setattr(calibrations.token_windows, "training_tokens", take_memory)
    monkeypatch.setattr(calibrations, "estimate_memory", lambda *_: MemoryEstimate(0, 0, 2**40))
    first = start("one.parquet")
    assert begins.wait(60)
    second = start("two.parquet")
    texts = (event.text for events in second.events() for event in events)
    assert "Waiting for memory; jobs ahead: 1" in texts
    assert begun == [kind]
    may_end.set()
    for ends in (first.join, partial(list, texts)):
        with pytest.raises(UserError, match="enough"):
            ends()


def test_caches_give_way_to_a_model_that_is_loaded_unless_it_is_too_large_anyway(tiny, monkeypatch) -> None:
    fresh = stepwise(Session(evaluation_tokens=256))
    total, budget = 2 * memory.OVERHEAD, calibrations.BUDGET
    monkeypatch.setattr(budget, "caches", type(budget.caches)([fresh._caches.models]))
    monkeypatch.setattr(budget, "max_bytes", total)
    for module in (memory, caches):
        monkeypatch.setattr(module, "available_bytes", lambda *_: total - budget.held_bytes())
    unused = ("nobody's", "float32")
    fresh._caches.models.put(unused, torch.empty(int(1.5 * memory.OVERHEAD), dtype=torch.uint8))
    key = tiny.calibration
    monkeypatch.setattr(memory, "OVERHEAD", 2 * total)
    with pytest.raises(UserError, match="GiB is free"):
        in_job(fresh, fresh.calibrations.load, key)
    assert fresh._caches.models.get(unused) is not None
    monkeypatch.setattr(memory, "OVERHEAD", total // 2)
    assert in_job(fresh, fresh.calibrations.load, key).name == key.model
    assert fresh._caches.models.get(unused) is None


@pytest.mark.parametrize(("hosted", "stay"), [("1", {"models--a--two"}), ("0", {"models--a--one", "models--a--two"})])
def test_a_hosted_page_bounds_the_models_that_it_fetches(hosted, stay, tiny, monkeypatch, tmp_path) -> None:
    fresh = stepwise(Session(evaluation_tokens=256))
    monkeypatch.setenv("INTRASLICE_HOSTED", hosted)
    monkeypatch.setenv(limits.HUB_BYTES.variable, "10")
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))

    def fetch(name: str, *_: object, **__: object) -> None:
        snapshot = tmp_path / "hub" / f"models--{name.replace('/', '--')}" / "snapshots" / "a"
        snapshot.mkdir(parents=True)
        (snapshot / "model.safetensors").write_bytes(bytes(10))
        raise UserError("it cannot be sliced")

    monkeypatch.setattr(calibrations, "load_model", fetch)
    monkeypatch.setattr(calibrations, "estimate_memory", lambda *_: MemoryEstimate(0, 0, 2**40))
    for name in ("a/one", "a/two"):
        with pytest.raises(UserError, match="cannot be sliced"):
            in_job(fresh, fresh.calibrations.load, tiny.calibration._replace(model=name))
        for marker in (tmp_path / "hub").glob(f"*/{hub.FETCHED}"):
            os.utime(marker, (0, 0))
    assert {path.name for path in (tmp_path / "hub").iterdir()} == stay
