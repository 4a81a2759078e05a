"""Calibrations kept on disk, and the accidents of that."""

from __future__ import annotations

import errno
import logging
from dataclasses import replace
from pathlib import Path

import pytest
from test_calibration import TOKENS, assert_same

from intraslice.calibration import driver
from intraslice.calibration.driver import calibrate
from intraslice.progress import Progress, finish


@pytest.fixture(autouse=True)
def cache(own_cache: Path) -> Path:
    return own_cache / "calibration"


@pytest.fixture
def loaded(tiny_llama_gqa, as_loaded):
    return as_loaded(tiny_llama_gqa())


@pytest.fixture
def forbid_work(monkeypatch: pytest.MonkeyPatch):
    """Call it, and any further calibration that is not read from disk fails."""

    def refuse(*_) -> None:
        raise AssertionError("calibrated again")

    return lambda: monkeypatch.setattr(driver, "_calibrate_batch", refuse)


def test_the_second_time_is_read_from_disk(loaded, forbid_work, cache):
    first = finish(calibrate(loaded, TOKENS))
    assert len(list(cache.iterdir())) == 1
    forbid_work()
    events: list[Progress] = []
    assert_same(finish(calibrate(loaded, TOKENS), events.append), first, atol=0, rtol=0)


@pytest.mark.parametrize("change", ["tokens", "shape", "weights", "dtype"])
def test_another_run_is_not_served_from_the_file(loaded, change, cache):
    finish(calibrate(loaded, TOKENS))
    tokens = TOKENS
    if change == "tokens":
        tokens = TOKENS.clone()
        tokens[2, 9] += 1
    elif change == "shape":
        tokens = TOKENS.view(5, 6)
    elif change == "weights":
        loaded = replace(loaded, fingerprint="other")
    else:
        loaded.model.bfloat16()
    finish(calibrate(loaded, tokens))
    assert len(list(cache.iterdir())) == 2


def test_models_of_one_architecture_have_their_own_fingerprints(tiny_llama_gqa, as_loaded):
    first, second = tiny_llama_gqa(), tiny_llama_gqa()
    second.model.layers[2].mlp.down_proj.weight.data += 1e-3
    assert as_loaded(first).fingerprint != as_loaded(second).fingerprint


@pytest.mark.parametrize("size", [0, 5, 100, -1])
def test_a_truncated_file_is_made_anew(loaded, cache, size):
    first = finish(calibrate(loaded, TOKENS))
    (file,) = cache.iterdir()
    content = file.read_bytes()
    file.write_bytes(content[:size])
    assert_same(finish(calibrate(loaded, TOKENS)), first, atol=0, rtol=0)
    assert file.stat().st_size == len(content)


def test_a_full_disk_is_a_warning(loaded, cache, monkeypatch, caplog):
    def full(*_) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(driver, "save_file", full)
    with caplog.at_level(logging.WARNING):
        stats = finish(calibrate(loaded, TOKENS))
    assert stats.tokens == 30
    assert "No space left on device" in caplog.text
    assert "INTRASLICE_CACHE" in caplog.text
    assert not list(cache.iterdir())


def test_a_cache_folder_that_cannot_be_made_is_a_warning(loaded, tmp_path, monkeypatch, caplog):
    (tmp_path / "file").write_text("in the way")
    monkeypatch.setenv("INTRASLICE_CACHE", str(tmp_path / "file"))
    finish(calibrate(loaded, TOKENS))
    assert "cannot keep the calibration" in caplog.text
