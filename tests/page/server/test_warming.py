"""The default model is ready before the first client comes."""

from types import SimpleNamespace

import pytest

from components.jobs.status import Status
from components.server import warming
from components.server.app import health
from components.state import calibrations
from components.state.caches import BUDGET
from components.state.session import Session
from intraslice.core.errors import UserError


@pytest.fixture
def fresh(fresh, monkeypatch, tiny) -> Session:
    """Where the tiny model is the default one."""
    monkeypatch.setattr(Session, "opening", tiny)
    return fresh


def test_calibration_measurement_and_slices_are_ready_and_stay(fresh, tiny, monkeypatch) -> None:
    monkeypatch.setattr(warming, "RECOVERED", (20,))  # training takes most of the time
    begun, begin = [], warming.Warming._begin
    monkeypatch.setattr(warming.Warming, "_begin", lambda *a: begun.append(a[1]) or begin(*a))
    warm = warming.Warming(fresh)
    assert warm.progress == ""
    warm.start().join()
    assert warm.progress == "done"
    slices = [f"slice at {percent}%" for percent in (20, 30, 40, 10, 50)]
    assert begun == ["calibration", "measurement", *slices, "recovery at 20%"]
    prepared = [tiny.with_settings(sparsity=percent) for percent in warming.SPARSITIES]
    prepared += [tiny.with_settings(sparsity=percent, recovery="distill") for percent in warming.RECOVERED]
    other = tiny.with_settings(sparsity=35)
    fresh.jobs.scheduler.start("client", lambda job: fresh.slice(job, other)).join()
    monkeypatch.setenv("INTRASLICE_MAX_UNUSED_SECONDS", "1")
    monkeypatch.setattr("components.state.caches.LARGE", 1)
    monkeypatch.setattr("components.state.caches.time.monotonic", lambda: 1e12)
    BUDGET.evict_unused()
    assert fresh.is_calibrated(tiny)
    assert all(fresh.is_sliced(request) for request in prepared)
    assert not fresh.is_sliced(other)  # it has not been used for long


def test_the_weights_are_loaded_once_before_the_first_client_comes(fresh, tiny, monkeypatch) -> None:
    loaded, load = [], calibrations.load_model
    monkeypatch.setattr(calibrations, "load_model", lambda *a, **b: loaded.append(a) or load(*a, **b))
    warming.load_weights(fresh).join()
    assert len(loaded) == 1
    list(fresh.prepare(tiny, "client"))
    assert fresh.is_calibrated(tiny)
    assert len(loaded) == 1


@pytest.mark.parametrize("short", ["caches", "jobs"])
def test_where_memory_is_short_it_ends_with_what_it_has(short, fresh, tiny, monkeypatch) -> None:
    """The caches have none for another slice, or training would leave too little to other jobs."""
    if short == "caches":
        monkeypatch.setattr(warming.BUDGET, "max_bytes", 1.0)
        monkeypatch.setattr(warming.BUDGET, "make_room", lambda *values: None)
    else:
        monkeypatch.setattr(fresh._caches, "job_bytes", 1e5)
    warm = warming.Warming(fresh)
    warm.start().join()
    assert warm.progress == "done"
    assert fresh.is_calibrated(tiny)
    assert fresh.is_sliced(tiny.with_settings(sparsity=50)) is (short == "jobs")
    assert not fresh.is_sliced(tiny.with_settings(sparsity=20, recovery="distill"))


def test_a_failure_is_reported_and_ends_it(fresh, monkeypatch, caplog) -> None:
    def fail(*values: object) -> None:
        raise UserError("no weights")

    monkeypatch.setattr(fresh.calibrations, "load", fail)
    warming.load_weights(fresh).join()
    assert "no weights" in caplog.text
    monkeypatch.setattr(fresh.calibrations, "calibrate", fail)
    warm = warming.Warming(fresh)
    warm.start().join()
    assert warm.progress == "failed: No weights."


def test_the_health_check_tells_how_far_it_is(fresh, monkeypatch) -> None:
    def calibrate(job, key):
        job.deliver(Status("Calibrating", "busy", 12, 32))
        job.sleep(60)

    monkeypatch.setattr(fresh.calibrations, "calibrate", calibrate)
    warm = warming.Warming(fresh)
    thread = warm.start()
    while not warm.progress.startswith("calibration, "):
        thread.join(0.01)
    report = health(fresh.jobs.scheduler, SimpleNamespace(stopped=False, open_calls=0), warm)
    assert (report["ok"], report["warming"]) == (True, "calibration, 12 of 32")
    for job in list(fresh.jobs.scheduler.jobs):
        job.stop()
    thread.join()
    assert warm.progress == "stopped"


@pytest.mark.parametrize(
    ("value", "hosted", "wanted"), [("", "", False), ("", "1", True), ("1", "", True), ("0", "1", False)]
)
def test_hosted_pages_do_so_others_when_asked(monkeypatch, value, hosted, wanted) -> None:
    monkeypatch.setenv(warming.VARIABLE, value)
    monkeypatch.setenv("INTRASLICE_HOSTED", hosted)
    monkeypatch.delenv("SPACE_ID", raising=False)
    assert warming.is_wanted() == wanted
