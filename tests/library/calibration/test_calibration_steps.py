"""A calibration between two of its steps: what it leaves on the model, and what it is worth so far."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from test_calibration import TOKENS, assert_same, hooks_of

from intraslice.calibration import driver
from intraslice.calibration.driver import calibrate
from intraslice.calibration.stats import CalibrationStats
from intraslice.core.errors import NumericalError
from intraslice.core.progress import Progress


@pytest.fixture(autouse=True)
def cache(own_cache: Path) -> Path:
    return own_cache / "calibration"


@pytest.fixture
def loaded(tiny_llama_gqa, as_loaded, monkeypatch):
    monkeypatch.setattr(driver, "TOKENS_PER_BATCH", 1)
    return as_loaded(tiny_llama_gqa())


def partial_results(loaded, targets="sampled") -> dict[int, CalibrationStats]:
    """What a calibration hands out before it ends, by the sequences that are done."""
    partial = {}

    def keep(event: Progress) -> None:
        if event.partial is not None:
            partial[event.done] = event.partial()

    calibrate(loaded, TOKENS, targets, progress=keep)
    return partial


def test_progress_counts_sequences_and_no_step_leaves_a_hook(loaded):
    counts = []

    def note(event: Progress) -> None:
        counts.append((event.done, event.total))
        assert not hooks_of(loaded.model)

    calibrate(loaded, TOKENS, progress=note)
    assert torch.is_grad_enabled()
    assert counts[0] == (0, 3)
    assert counts[-1] == (3, 3)
    assert counts == sorted(counts)
    assert all(parameter.grad is None for parameter in loaded.model.parameters())


def test_the_model_may_be_used_between_two_steps(family_case, monkeypatch, tmp_path):
    tokens = family_case.tokens[:4]
    expected = calibrate(family_case.loaded, tokens, progress=False)
    monkeypatch.setenv("INTRASLICE_CACHE", str(tmp_path / "another"))

    def use_the_model(_: Progress) -> None:
        with torch.no_grad():
            family_case.loaded.model(family_case.tokens[5:6])

    assert_same(calibrate(family_case.loaded, tokens, progress=use_the_model), expected, atol=0, rtol=0)


def test_what_is_there_after_some_sequences_is_a_calibration_on_those(loaded):
    partial = partial_results(loaded, "text")
    assert list(partial) == [1, 2, 3]
    for sequences, statistics in partial.items():
        expected = calibrate(loaded, TOKENS[:sequences], "text", progress=False)
        assert statistics.tokens == expected.tokens == sequences * TOKENS.shape[1]
        assert_same(statistics, expected, atol=1e-6, rtol=1e-6)
        assert statistics.make_profile(progress=False) is statistics.profile


def test_what_is_broken_so_far_is_named(loaded):
    loaded.model.lm_head.weight.data[7] = float("inf")
    named = []

    def look(event: Progress) -> None:
        if event.partial is not None:
            with pytest.raises(NumericalError, match="not finite") as caught:
                event.partial()
            named.append(caught.value)

    with pytest.raises(NumericalError, match="not finite"):
        calibrate(loaded, TOKENS, progress=look)
    assert len(named) == 3


def test_moments_are_whole_however_they_add_up(loaded, monkeypatch, tmp_path):
    expected = calibrate(loaded, TOKENS, progress=False)  # these are smaller than a block
    monkeypatch.setenv("INTRASLICE_CACHE", str(tmp_path / "another"))
    monkeypatch.setattr("intraslice.core.linalg.BLOCK", 16)
    partial = partial_results(loaded)
    assert_same(calibrate(loaded, TOKENS, progress=False), expected, atol=1e-6, rtol=1e-5)
    assert_same(partial[3], expected, atol=1e-6, rtol=1e-5)
