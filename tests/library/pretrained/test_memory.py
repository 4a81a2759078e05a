"""Whether a model fits, known before it is loaded."""

import ctypes
import re
import sys
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest
import torch
from forked import answers_of
from refusing import refused
from tiny_models import llama

from intraslice import loading
from intraslice.calibration import driver
from intraslice.calibration.stats import empty_stats
from intraslice.core.progress import ignore_progress
from intraslice.modeling.families import blocks
from intraslice.pretrained import memory, sources
from intraslice.pretrained.memory import calibration_bytes, estimate_memory, require_calibration_memory, require_memory
from intraslice.pretrained.precision import choose_device, choose_dtype
from intraslice.pretrained.sources import DEFAULT


def test_the_estimate_of_the_default_needs_no_weights(own_cache, default_model, monkeypatch):
    monkeypatch.setattr(sources, "_cached_snapshot", lambda *given: None)
    counted = sum(parameter.numel() for parameter in default_model.model.parameters())
    assert estimate_memory(DEFAULT).parameters == counted
    assert not own_cache.exists()


def test_a_model_that_does_not_fit_is_refused_with_both_numbers(folder, monkeypatch, refusal):
    require_memory(str(folder))
    monkeypatch.setattr(memory, "available_bytes", lambda device="cpu": 200 * 2**20)
    monkeypatch.setattr(loading, "read_weights", lambda *given: pytest.fail("loaded"))
    message = refusal(folder)
    assert "needs 0.3 GiB, but only 0.2 GiB is free on cpu; use bfloat16 or a smaller model" in message


def peak_of(work: Callable[[], object]) -> int:
    """Bytes that a process forked for it holds at its peak more than before."""

    def held(field: str) -> int:
        status = Path("/proc/self/status").read_text().splitlines()
        return next(1024 * int(line.split()[1]) for line in status if line.startswith(field))

    def measure() -> int:
        ctypes.CDLL(None).malloc_trim(0)
        Path("/proc/self/clear_refs").write_text("5")  # the peak begins anew
        before = held("VmRSS")
        work()
        return held("VmHWM") - before

    (peak,) = answers_of([measure])
    return peak


def test_a_process_may_have_less_than_is_free(folder, monkeypatch, refusal):
    free = memory.available_bytes()
    monkeypatch.setenv(memory.MEMORY_VARIABLE, str(psutil.Process().memory_info().rss + 2**27))
    assert 2**26 < memory.available_bytes() < min(free, 2**28)
    assert "is free on cpu" in refusal(folder)
    monkeypatch.setenv(memory.MEMORY_VARIABLE, "8 GB")
    assert re.search("INTRASLICE_MAX_MEMORY must be a whole number of bytes, .*'8 GB'", refused(memory.available_bytes))


@pytest.mark.skipif(sys.platform != "linux", reason="peaks are read from /proc")
def test_a_calibration_takes_what_is_said(as_loaded):
    make = llama(1, sizes=(256, 768, 4, 2), num_hidden_layers=6, max_position_embeddings=4096)
    model = as_loaded(make()).model
    tokens = torch.randint(3, 256, (1, 2048))

    def calibrating() -> None:
        stats = [empty_stats(block, 1, model.device) for block in blocks(model)]
        driver._calibrate_shard(model, stats, tokens, "sampled", ignore_progress)

    assert 0.5 < peak_of(calibrating) / calibration_bytes(model.config, 1, 2048, torch.float32) < 1.2


def test_a_long_window_costs_by_its_length(default_model):
    config = default_model.model.config
    of = [calibration_bytes(config, 1, length, torch.float32) for length in (64, 512, 2048, 8192)]
    assert of[0] == of[1]  # a batch has 512 tokens, be they one sequence or eight
    assert 12 < of[3] / 2**30 < 13
    assert of[3] - of[2] == pytest.approx(4 * (of[2] - of[1]), rel=0.01)
    assert calibration_bytes(config, 1, 8192, torch.bfloat16) < 0.6 * of[3]
    assert calibration_bytes(config, 4096, 8192, torch.float32) > 2 * of[3]  # slicing keeps states of all tokens


def test_a_calibration_that_does_not_fit_is_refused_with_what_would(default_model, monkeypatch):
    config = default_model.model.config
    monkeypatch.setattr(memory, "available_bytes", lambda device="cpu": 4 * 2**30)
    assert require_calibration_memory(config, 32, 512, torch.float32) < 2 * 2**30
    for sequences, length, words in (
        (1, 8192, r"1 x 8,192 tokens, .*, needs 1\d\.\d GiB, but only 4\.0 GiB .*; use a length of 2,048 or less"),
        (1, 10_000_000, "length must be at most 8,192, the model's maximum context length, got 10,000,000"),
        (10**9, 512, "use fewer sequences"),
    ):
        message = refused(require_calibration_memory, config, sequences, length, torch.float32)
        assert re.search(words, message)


@pytest.mark.parametrize(
    ("capabilities", "cuda", "device", "dtype"),
    [
        *(({name: True}, None, "cpu", "bfloat16") for name in ("avx512_bf16", "amx_bf16", "bf16")),
        ({"avx512_f": True, "avx512_bf16": False}, None, "cpu", "float32"),
        ({}, "with bfloat16", "cuda", "bfloat16"),
        ({"bf16": True}, "without", "cuda", "float32"),
    ],
)
def test_cuda_and_native_bfloat16_are_used_where_they_are_there_and_what_is_named_is_taken(
    monkeypatch, capabilities, cuda, device, dtype
):
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: capabilities, raising=False)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: cuda is not None)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: cuda != "without")
    assert (choose_device(), choose_dtype(device=f"{choose_device()}:0")) == (device, dtype)
    assert (choose_device("cuda:1"), choose_dtype("float32")) == ("cuda:1", "float32")
    assert choose_dtype(device="mps") == "float32"
    if not cuda:
        assert choose_dtype() == dtype
        assert choose_dtype(device="cuda") == "float32"  # loading says that there is none
