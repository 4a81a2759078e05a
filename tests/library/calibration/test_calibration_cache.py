"""Calibrations kept on disk, and the accidents of that."""

from __future__ import annotations

import os
import time
from dataclasses import replace
from pathlib import Path
from random import Random

import numpy
import pytest
import torch
from test_calibration import TOKENS, assert_same

from intraslice.calibration import driver
from intraslice.calibration.driver import calibrate
from intraslice.core.cache import MAX_BYTES_VARIABLE, set_max_cache_bytes
from intraslice.core.progress import Progress


@pytest.fixture(autouse=True)
def cache(own_cache: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv(MAX_BYTES_VARIABLE, str(10**9))
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
    first = calibrate(loaded, TOKENS, progress=False)
    assert len(list(cache.iterdir())) == 1
    forbid_work()
    (file,) = cache.iterdir()
    then = time.time() - 3600
    os.utime(file, (then, then - 1))  # so that it is not the system that notes an access
    events: list[Progress] = []
    assert_same(calibrate(loaded, TOKENS, progress=events.append), first, atol=0, rtol=0)
    assert file.stat().st_atime > then + 3000  # so that it is not the next to go


def test_of_the_moments_one_triangle_is_kept(loaded, cache):
    stats = calibrate(loaded, TOKENS, progress=False)
    entries = sum(value.numel() for layer in stats.layers for value in vars(layer).values())
    with numpy.load(next(cache.iterdir())) as arrays:
        assert {arrays[name].dtype for name in arrays} == {numpy.dtype(numpy.float32)}
        kept = sum(arrays[name].size for name in arrays)
        triangle = arrays["1.mlp_moment"]
    assert kept < 0.54 * entries
    moment = stats.layers[1].mlp_moment.numpy()
    assert triangle.tolist() == moment[numpy.tril_indices(len(moment))].tolist()
    assert kept * 4 == sum(layer.packed_bytes for layer in stats.layers)


def test_moments_are_symmetric_to_the_last_bit_however_they_were_multiplied(loaded):
    layer = calibrate(loaded, TOKENS, progress=False).layers[0]
    layer.attention_moment = torch.randn(600, 600)
    lower = layer.attention_moment.tril()
    layer.mirror_()
    assert torch.equal(layer.attention_moment, layer.attention_moment.T)
    assert torch.equal(layer.attention_moment.tril(), lower)


def test_it_is_kept_where_it_fits_and_there_is_room_before_it_is_written(loaded, cache, monkeypatch, caplog):
    first = calibrate(loaded, TOKENS, progress=False)
    (file,) = cache.iterdir()
    set_max_cache_bytes(file.stat().st_size + 20_000)  # not for two
    calibrate(loaded, TOKENS + 1, progress=False)
    assert len(list(cache.iterdir())) == 1
    assert not file.exists()
    set_max_cache_bytes(1_000)
    monkeypatch.setattr(driver, "_write", lambda *_: pytest.fail("written"))
    assert_same(calibrate(loaded, TOKENS, progress=False), first, atol=0, rtol=0)
    assert f"space that {MAX_BYTES_VARIABLE} allows" in caplog.text


@pytest.mark.parametrize("change", ["tokens", "shape", "weights", "dtype"])
def test_another_run_is_not_served_from_the_file(loaded, change, cache):
    calibrate(loaded, TOKENS, progress=False)
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
    calibrate(loaded, tokens, progress=False)
    assert len(list(cache.iterdir())) == 2


def test_a_file_with_any_bit_flipped_gives_the_same_or_is_made_anew(loaded, cache):
    first = calibrate(loaded, TOKENS, progress=False)
    (file,) = cache.iterdir()
    whole = file.read_bytes()
    places = Random(0)
    # The first array's header, the table of contents, and the values between them.
    for start, end, count in [(0, 200, 8), (len(whole) - 4000, len(whole), 5), (200, len(whole), 3)]:
        for _ in range(count):
            damaged = bytearray(whole)
            damaged[places.randrange(start, end)] ^= 1 << places.randrange(8)
            file.write_bytes(damaged)
            assert_same(calibrate(loaded, TOKENS, progress=False), first, atol=0, rtol=0)
