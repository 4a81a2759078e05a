"""Measures on synthetic Llamas how the time of each job scales with a model's tokens, layers and width."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median

import numpy
import torch
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from intraslice.calibration.driver import calibrate
from intraslice.core.config import SliceConfig
from intraslice.core.progress import Progress, ProgressCallback, progress_callback
from intraslice.evaluation.benchmark import clock, temporary_cache
from intraslice.loading import LoadedModel, fingerprint
from intraslice.methods.registry import plan_by, slice_by
from intraslice.modeling.families import canonicalise

JOBS = ("calibrate", "slice_sequential", "slice_one_shot")
REPEATS = 3
LENGTH, HEAD, VOCABULARY = 256, 64, 256  # tokens per sequence, channels per head, number of token ids


@dataclass(frozen=True)
class Size:
    """Size of one synthetic model and its calibration; `width` is that of the residual stream."""

    tokens: int = 1024
    layers: int = 2
    width: int = 256


SIZES: dict[str, tuple[Size, ...]] = {
    "tokens": tuple(Size(tokens=tokens) for tokens in (1024, 2048, 4096)),
    "layers": tuple(Size(layers=layers) for layers in (2, 4, 8)),
    "width": tuple(Size(width=width) for width in (192, 384, 768)),
}


def exponent(sizes: Sequence[int], seconds: Sequence[float]) -> float:
    """The least-squares slope of log seconds over log sizes."""
    return float(numpy.polyfit(numpy.log(sizes), numpy.log(seconds), 1)[0])


def measure_growth(device: str = "cpu", *, progress: ProgressCallback | bool = True) -> dict[str, dict[str, float]]:
    """Time `JOBS` on Llamas with random weights, along one axis at a time; medians over interleaved repeats."""
    all_sizes = list(dict.fromkeys(size for axis_sizes in SIZES.values() for size in axis_sizes))
    seconds: dict[Size, list[dict[str, float]]] = {size: [] for size in all_sizes}
    report, steps = progress_callback(progress), REPEATS * len(all_sizes)
    report(Progress("growth", 0, steps))
    for step in range(steps):
        size = all_sizes[step % len(all_sizes)]
        seconds[size].append(_seconds(size, device))
        report(Progress("growth", step + 1, steps))

    def exponents(axis: str) -> dict[str, float]:
        axis_sizes = SIZES[axis]
        lengths = [getattr(size, axis) for size in axis_sizes]
        medians = {job: [median(repeat[job] for repeat in seconds[size]) for size in axis_sizes] for job in JOBS}
        return {job: exponent(lengths, medians[job]) for job in JOBS}

    return {axis: exponents(axis) for axis in SIZES}


def _seconds(size: Size, device: str) -> dict[str, float]:
    """Seconds of each job at one size."""
    loaded = _random_llama(size, device)
    model, generator = loaded.model, torch.Generator().manual_seed(0)
    tokens = torch.randint(VOCABULARY, (size.tokens // LENGTH, LENGTH), generator=generator)
    times = [clock(model.device)]
    with temporary_cache():
        stats = calibrate(loaded, tokens, progress=False)
        _ = stats.profile
    times.append(clock(model.device))
    for order in ("sequential", "one-shot"):
        plan = plan_by("intraslice", model, stats, SliceConfig(estimator="uniform", order=order))
        slice_by("intraslice", model, plan, stats, tokens, progress=False)
        times.append(clock(model.device))
    return {job: after - before for job, (before, after) in zip(JOBS, itertools.pairwise(times), strict=True)}


def _random_llama(size: Size, device: str) -> LoadedModel:
    """A canonicalised Llama with random weights, and a tokenizer that is never used."""
    heads = size.width // HEAD
    config = LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=size.width,
        intermediate_size=3 * size.width,
        num_hidden_layers=size.layers,
        num_attention_heads=heads,
        max_position_embeddings=LENGTH,
    )
    model = LlamaForCausalLM(config).eval().requires_grad_(False)
    digest = fingerprint(model)
    canonicalise(model)
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=Tokenizer(WordLevel({})))
    return LoadedModel(model.to(device), tokenizer, "synthetic", "random weights", digest)
