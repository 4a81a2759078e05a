"""Models that are loaded: their memory is reserved before, and a hosted page bounds those that it fetches."""

import os
import threading
from functools import partial
from types import SimpleNamespace

import pytest
import torch
from huggingface_hub import constants
from tiny_page import in_job, stepwise

from components.jobs import limits
from components.jobs.job import Job
from components.state import calibrations, job_memory
from components.state.session import Session
from intraslice.core.errors import UserError
from intraslice.pretrained import hub, memory
from intraslice.pretrained.memory import MemoryEstimate


@pytest.fixture
def fresh() -> Session:
    return stepwise(Session(evaluation_tokens=256))


def test_a_model_is_loaded_once_those_before_it_leave_memory_for_it(tiny, monkeypatch) -> None:
    session, names = Session(evaluation_tokens=256), []
    begins, may_end = threading.Event(), threading.Event()
    session._caches.job_bytes = 0

    def load_model(name: str, *_: object, **__: object) -> SimpleNamespace:
        names.append(name)
        begins.set()
        assert may_end.wait(60)
        return SimpleNamespace(identity=name)

    def start(name: str) -> Job:
        key = tiny.calibration._replace(model=name)
        return session.jobs.scheduler.start(name, partial(session.calibrations._load_now, key=key))

    monkeypatch.setattr(calibrations, "load_model", load_model)
    monkeypatch.setattr(calibrations, "estimate_memory", lambda *_: MemoryEstimate(0, 0, 2**40))
    first = start("first")
    assert begins.wait(60)
    second = start("second")
    texts = (event.text for events in second.events() for event in events)
    assert "Waiting for memory; jobs ahead: 1" in texts
    assert names == ["first"]
    may_end.set()
    assert [list(job.events()) and job.result.identity for job in (first, second)] == ["first", "second"]


def test_caches_give_way_to_a_model_that_is_loaded_unless_it_is_too_large_anyway(fresh, tiny, monkeypatch) -> None:
    total, budget = 2 * memory.OVERHEAD, calibrations.BUDGET
    monkeypatch.setattr(budget, "caches", type(budget.caches)([fresh._caches.models]))
    monkeypatch.setattr(budget, "max_bytes", total)
    for module in (memory, job_memory):
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
def test_a_hosted_page_bounds_the_models_that_it_fetches(hosted, stay, fresh, tiny, monkeypatch, tmp_path) -> None:
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
        key = tiny.calibration._replace(model=name)
        with pytest.raises(UserError, match="cannot be sliced"):
            in_job(fresh, fresh.calibrations.load, key)
        for marker in (tmp_path / "hub").glob(f"*/{hub.FETCHED}"):
            os.utime(marker, (0, 0))
    assert {path.name for path in (tmp_path / "hub").iterdir()} == stay
