"""A size as the target: what is written and allocated, against it."""

from __future__ import annotations

import copy
import re
from dataclasses import replace

import jaxtyping
import pytest
import torch
from gguf_files import byte_tokenizer
from models import TinyCase
from refusing import refused
from tiny_models import llama
from transformers import StaticCache

from intraslice.calibration.driver import calibrate
from intraslice.checkpoints.format import WEIGHTS, save
from intraslice.checkpoints.to_gguf import write_gguf
from intraslice.core.config import CalibrationConfig, EvaluationConfig, SliceConfig
from intraslice.modeling.hidden_states import cache_keyword
from intraslice.records import Recipe, slice_record
from intraslice.size_target import ENOUGH, SizeTarget, parse_size, plan_recipe, planned_folder

RECIPE = Recipe("tiny", SliceConfig(order="one-shot"), CalibrationConfig(), EvaluationConfig())
CONTEXT = 200  # tokens


@pytest.fixture(scope="module")
def case(as_loaded) -> TinyCase:
    make = llama(21, sizes=(64, 224, 8, 4), num_hidden_layers=28, tie_word_embeddings=True)
    loaded = replace(as_loaded(make()), tokenizer=byte_tokenizer())
    tokens = torch.randint(3, 256, (8, 32), generator=torch.Generator().manual_seed(7))
    return TinyCase("llama", make(), loaded, tokens, calibrate(loaded, tokens, progress=False))


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["bfloat16", "f16", "q8_0", "q4_0"])
def test_written_and_allocated_bytes_are_just_below_the_target(case, kind, tmp_path, monkeypatch):
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)  # type checks cost five times the plans

    def made(size: int, context: int) -> tuple[int, float]:
        """The bytes that are written and allocated for a target, and the sparsity."""
        plan, recipe = plan_recipe(RECIPE, case.loaded, case.stats, size=SizeTarget(size, kind, context))
        model = case.cut(plan)
        file, record = tmp_path / f"{size}", slice_record(recipe, case.loaded, plan)
        if kind == "bfloat16":
            model = copy.deepcopy(model).bfloat16()
            save(model, case.loaded.tokenizer, file, record)
            written, cache = (file / WEIGHTS).stat().st_size, allocated(model, context) if context else 0
        else:
            file = file.with_suffix(".gguf")
            written = write_gguf(model, case.loaded.tokenizer, file, kind, "", record, progress=False).bytes
            cache = 2 * 2 * 8 * sum(layer.kv_heads for layer in plan.layers) * (256 if context else 0)
        return written + cache, recipe.slicing.sparsity

    for context in (0, CONTEXT):
        message = refused(made, 1000, context)
        assert "cannot be reached: the smallest that these settings reach is" in message
        smallest = int(1e6 * float(re.findall(r"([\d.]+) MB", message)[1]))
        dense, sparsity = made(10**9 + context, context)
        assert sparsity == 0
        assert smallest < 0.7 * dense
        sparsities = []
        for step in range(1, 10, 3) if context else range(10):
            target = round(smallest + (dense - smallest) * step / 9.5)
            size, sparsity = made(target, context)
            assert ENOUGH * target <= size <= target
            sparsities.append(sparsity)
        assert sparsities == sorted(sparsities, reverse=True)


def allocated(model: torch.nn.Module, context: int) -> int:
    cache = StaticCache(config=model.config, max_cache_len=context)
    model(torch.full((1, 4), 5), **{cache_keyword(model): cache}, use_cache=True)
    return sum(layer.keys.nbytes + layer.values.nbytes for layer in cache.layers)


@pytest.mark.parametrize("family", ["llama-gqa", "mistral", "gemma3", "phi"])
@pytest.mark.parametrize("method", ["intraslice", "flatllm"])
def test_the_planned_cache_is_what_transformers_allocates(tiny_case, family, method):
    case, locked = tiny_case(family), ((1, "attention", 1.0),)
    plan = case.plan(0.3, method, locked=locked)
    alone, cached = (planned_folder(case.dense, "float32", method == "intraslice", size) for size in (0, 20))
    assert cached(plan) - alone(plan) == allocated(case.cut(plan, method), 20)


@pytest.mark.parametrize("text", ["200", "much", "-1 MB", "1e3 MB", "200 MB q8_0 q4_0", "200 MB q9_9", ""])
def test_other_sizes_are_refused(text):
    assert re.search("200 MB q8_0, got|type of the weights must be one of", refused(parse_size, text))


def test_sizes_are_parsed():
    assert parse_size("200 MB", 5) == parse_size("0.2gb", 5) == SizeTarget(200_000_000, None, 5)
    assert parse_size("1.5KiB q4_0") == SizeTarget(1536, "q4_0", 0)
