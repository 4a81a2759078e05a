"""Costs in dense forwards, by a clock of the test's own."""

from functools import partial

import pytest
import torch
from refusing import refused

from intraslice.calibration.driver import calibrate
from intraslice.calibration.stats import CalibrationStats
from intraslice.core.config import SliceConfig
from intraslice.core.progress import Progress, ProgressCallback, ignore_progress
from intraslice.evaluation import benchmark
from intraslice.evaluation.benchmark import InterleavedTimer, measure_costs
from intraslice.evaluation.speed import Speed


class Clock:
    """Stands still but where a test moves it."""

    seconds = 0.0

    def __call__(self, device: torch.device) -> float:
        return self.seconds


@pytest.fixture
def clock(monkeypatch) -> Clock:
    made = Clock()
    monkeypatch.setattr(benchmark, "clock", made)
    return made


@pytest.fixture
def turns(case, clock, tiny_llama_gqa) -> InterleavedTimer:
    """A dense forward of 10 x 48 tokens takes 4.8 seconds: 10 ms a token."""

    def forward(input_ids, use_cache):
        assert not torch.is_grad_enabled()
        clock.seconds += 0.01 * input_ids.numel()

    model = tiny_llama_gqa()
    model.forward = forward
    return InterleavedTimer(model, case.tokens)


def job(clock: Clock, seconds: float, progress: ProgressCallback, steps: int = 5) -> str:
    for step in range(steps):
        progress(Progress("job", step, steps))
        clock.seconds += seconds / steps
    return "done"


@pytest.mark.parametrize("seconds", [1.0, 100.0])
def test_a_job_is_worth_the_tokens_of_a_dense_forward_in_the_time_that_it_takes_without_its_callback(
    clock, turns, seconds
):
    events: list[Progress] = []

    def slow(event: Progress) -> None:
        events.append(event)
        clock.seconds += 1000

    value, *tokens = turns.time(partial(job, clock, seconds), slow)
    assert value == "done"
    assert tokens == pytest.approx([seconds / 0.01, seconds / 0.05])
    assert events == [Progress("job", step, 5) for step in range(5)]


def test_dense_forwards_get_a_share_of_the_time_of_a_long_job(clock, turns):
    turns.time(partial(job, clock, 1000, steps=200), ignore_progress)
    assert sum(turns.dense) * 480 == pytest.approx(1000 * benchmark.DENSE_FRACTION, rel=0.05)


def test_a_short_job_counts_by_its_median(clock, turns):
    seconds = iter([1.0, 50.0, 3.0])
    assert turns.repeat(lambda progress: job(clock, next(seconds), progress), ignore_progress) == pytest.approx(300)


@pytest.fixture
def by_hand(case, clock, monkeypatch):
    """Measures costs where a dense forward takes a second a token, and every job the seconds given here."""
    algebra = {"intraslice": 20.0, "crossmodule": 30.0}

    def calibrate(loaded, tokens, targets, progress):
        job(clock, 3.0 * tokens.numel(), progress)
        progress(Progress("calibrate", 1, 1))
        clock.seconds += 7.0  # it is kept
        return case.stats

    def slice_by(method, model, plan, stats, tokens, progress):
        assert stats is not case.stats  # which would keep what a slice computes for the next one
        passing = 2.0 * tokens.numel() if plan == "sequential" else 0.0
        job(clock, algebra[method] + passing, progress)

    def perplexity(model, windows, progress):
        job(clock, 0.5 * windows.numel(), progress)

    def plan_by(method, model, stats, config):
        clock.seconds += 0.25
        return config.order

    def profile(stats, *, progress):
        job(clock, 10.0, progress)

    def forward(turns):
        clock.seconds += turns._batch.numel()
        return 1.0

    def speeds(models, progress):
        progress(Progress("speed", 1, 1))
        return {"dense": Speed(100.0, 10.0), "sliced": Speed(200.0, 12.5)}

    for made in (calibrate, slice_by, perplexity, plan_by):
        monkeypatch.setattr(benchmark, made.__name__, made)
    monkeypatch.setattr(CalibrationStats, "make_profile", profile)
    monkeypatch.setattr(benchmark, "measure_speed", speeds)
    monkeypatch.setattr(InterleavedTimer, "_forward", forward)
    return lambda tokens: measure_costs(case.loaded, tokens, case.tokens[:2], SliceConfig(), progress=False)


@pytest.mark.parametrize("sequences", [4, 16])
def test_what_passes_tokens_is_scaled_to_the_usual_number_and_the_algebra_is_not(case, by_hand, sequences):
    costs = by_hand(case.tokens[:sequences])
    usual = 32 * 512
    assert costs.ratios == pytest.approx(
        {
            "calibrate": 3 + (7 + 10) / usual,
            "slice_sequential": 2 + 20 / usual,
            "slice_one_shot": 20 / usual,
            "slice_crossmodule_sequential": 2 + 30 / usual,
            "slice_crossmodule_one_shot": 30 / usual,
            "perplexity": 0.5,
            "prefill": 0.5,
            "decode": 0.8,
        }
    )
    assert (costs.plan_ms, costs.dense_ms) == (pytest.approx(250), pytest.approx(1000))


def test_a_calibration_on_disk_is_made_anew(case, own_cache):
    calibrate(case.loaded, case.tokens, progress=False)
    kept = {path: path.stat().st_mtime_ns for path in own_cache.rglob("*")}
    events: list[Progress] = []
    calibrate(case.loaded, case.tokens, progress=events.append)
    assert events == []  # nothing is left to do
    measure_costs(case.loaded, case.tokens, case.tokens[:4], SliceConfig(0.3), progress=events.append)
    assert ("calibrate", 16) in {(event.stage, event.done) for event in events}
    assert {path: path.stat().st_mtime_ns for path in own_cache.rglob("*")} == kept


def test_a_model_on_disk_is_refused(case, monkeypatch):
    monkeypatch.setattr(benchmark, "is_offloaded", lambda model: True)
    message = refused(measure_costs, case.loaded, case.tokens, case.tokens[:4], SliceConfig())
    assert "leave the device map out" in message


def test_a_family_without_cross_module_slices_is_timed_without_them(tiny_case):
    case = tiny_case("gemma3")
    costs = measure_costs(case.loaded, case.tokens[:4], case.tokens[:2], SliceConfig(0.3), progress=False)
    assert costs.ratios.keys() == {"calibrate", "slice_sequential", "slice_one_shot", "perplexity", "prefill", "decode"}
