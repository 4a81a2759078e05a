"""What is said before a run: counts against the files of a run, and times that follow from speeds."""

from __future__ import annotations

from dataclasses import replace

import torch
from transformers import LlamaConfig

from intraslice.streaming.driver import _sizes, slice_to_folder
from intraslice.streaming.estimate import Speeds, estimate_stream, measure_speeds, stream_sizes

LLAMA_8B = LlamaConfig(
    hidden_size=4096,
    intermediate_size=14336,
    num_hidden_layers=32,
    num_attention_heads=32,
    num_key_value_heads=8,
    vocab_size=128256,
)
SPEEDS = Speeds(1e11, 1e11, 1e11, 1e8)


def test_the_reserved_bytes_hold_the_journal(tiny_case, recipe_for, own_cache, folder):
    case = tiny_case("llama-gqa")
    recipe, most = recipe_for(case), 0

    def watch(event):
        nonlocal most
        files = (own_cache / "unfinished").rglob("*")
        most = max(most, sum(file.stat().st_size for file in files if file.is_file()))

    slice_to_folder(recipe, folder, progress=watch)
    reserved = _sizes(recipe, case.original.config).journal_bytes
    headers = 2**16 * case.original.config.num_hidden_layers  # next to nothing beside those of a real model
    assert 0.6 * (reserved - headers) < most < reserved


def test_counts_are_those_of_the_published_model():
    sizes = stream_sizes(LLAMA_8B, 32, 512, torch.bfloat16)
    assert sizes.layers * sizes.layer_parameters + sizes.outer_parameters == 8_030_261_248
    assert sizes.state_bytes == 32 * 512 * 4096 * 2


def test_an_estimate_is_pure_and_grows_with_the_work():
    sizes = stream_sizes(LLAMA_8B, 32, 512, torch.bfloat16)
    estimate = estimate_stream(sizes, 0.3, SPEEDS)
    assert estimate == estimate_stream(sizes, 0.3, SPEEDS)
    assert (
        estimate_stream(sizes, 0.3, Speeds(*(2 * speed for speed in vars(SPEEDS).values()))).seconds < estimate.seconds
    )
    longer = estimate_stream(replace(sizes, sequences=64), 0.3, SPEEDS)
    assert longer.seconds > 1.5 * estimate.seconds
    assert longer.disk_bytes > estimate.disk_bytes
    deeper = estimate_stream(replace(sizes, layers=64), 0.3, SPEEDS)
    assert deeper.memory_bytes == estimate.memory_bytes  # that of one layer
    assert "GiB of memory" in str(estimate)


def test_speeds_are_measured_at_any_width(tiny_case):
    sizes = stream_sizes(tiny_case("phi").original.config, 6, 24, torch.bfloat16)
    assert all(1e4 < speed < 1e16 for speed in vars(measure_speeds(sizes, torch.bfloat16)).values())
