"""Measures the cost of slicing in dense forwards of the same model in the same precision, a machine-independent unit.

The unit of calibrating and slicing is the dense model's forward, logits included, over the default calibration (32 x
512 tokens). It can be measured on fewer tokens: the time of forwards is scaled by the number of tokens. Linear algebra
does not depend on that number, so it is timed separately and not scaled: for calibration, computing the profile and
saving; for the sequential order, the time of one-shot slicing. The CPU time of several threads includes their waiting
for each other, which on a busy machine is most of a small job.
"""

import os
import tempfile
import time
from collections.abc import Callable
from contextlib import nullcontext, suppress
from dataclasses import dataclass, replace
from statistics import fmean, median
from typing import TypeVar
from unittest.mock import patch

import torch
from transformers import PreTrainedModel

from intraslice.calibration.driver import calibrate
from intraslice.core.config import FREE, PRESETS, CalibrationConfig, Order, SliceConfig, Targets
from intraslice.core.errors import UserError
from intraslice.core.progress import Progress, ProgressCallback, ProgressOption, progress_callback
from intraslice.evaluation.perplexity import perplexity
from intraslice.evaluation.speed import measure_speed, wall_clock
from intraslice.loading import LoadedModel
from intraslice.methods.registry import plan_by, slice_by
from intraslice.modeling.hidden_states import Tokens, Windows
from intraslice.modeling.offload import is_offloaded

T = TypeVar("T")
Job = Callable[[ProgressCallback], T]
REFERENCE_TOKENS = CalibrationConfig().sequences * CalibrationConfig().length
# Slicing jobs and their methods. Perplexity and speed are measured on the model of the last one.
SLICE_JOBS = {"slice_crossmodule": "crossmodule", "slice": "intraslice"}
REPEATS = 3  # of short jobs
PLANS = 9
DENSE_FRACTION = 1 / 4  # time of the interleaved dense forwards, as a fraction of the job's time


@dataclass(frozen=True)
class Costs:
    """The cost of each job for one model in one precision.

    `ratios` of calibrating and slicing are in dense forwards over the default calibration, that of perplexity in dense
    forwards over the same text, those of prefill and decode in the dense model's seconds per token (below 1 is faster).
    """

    ratios: dict[str, float]
    plan_ms: float
    dense_ms: float  # per token of a dense forward


def clock(device: torch.device) -> float:
    """A clock in seconds: this process's CPU time or, on a GPU, wall time once the queued work is done."""
    return wall_clock(device) if device.type == "cuda" else time.process_time()


class InterleavedTimer:
    """Times jobs interleaved with dense forwards, which a busy machine slows equally, and whose time is not counted."""

    def __init__(self, model: PreTrainedModel, tokens: Tokens) -> None:
        batch = 512 if model.device.type == "cpu" else 2048  # tokens; larger batches are not faster
        self._model, self._batch = model, tokens[: max(1, batch // tokens.shape[1])].to(model.device)
        self.dense: list[float] = []  # seconds per token of each dense forward
        self._forward()  # warms up

    @torch.no_grad()
    def _forward(self) -> float:
        start = clock(self._model.device)
        self._model(input_ids=self._batch, use_cache=False)
        return (clock(self._model.device) - start) / self._batch.numel()

    def time(self, job: Job[T], progress: ProgressCallback) -> tuple[T, float, float]:
        """A job's result, its time in tokens of dense forwards, and the part of this after the last progress event."""
        spent, first_sample, start = 0.0, len(self.dense), clock(self._model.device)

        def between(event: Progress) -> None:
            nonlocal spent, start
            spent += clock(self._model.device) - start
            if sum(self.dense[first_sample:]) * self._batch.numel() <= DENSE_FRACTION * spent:
                self.dense.append(self._forward())
            progress(event)
            start = clock(self._model.device)

        value = job(between)
        closing_tokens = clock(self._model.device) - start
        token = fmean(self.dense[first_sample:])
        return value, (spent + closing_tokens) / token, closing_tokens / token

    def repeat(self, job: Job[T], progress: ProgressCallback) -> float:
        """The median time of a short job, in tokens of dense forwards."""
        return median(self.time(job, progress)[1] for _ in range(REPEATS))


def measure_costs(
    loaded: LoadedModel,
    tokens: Tokens,
    windows: Windows,
    config: SliceConfig,
    targets: Targets = "sampled",
    *,
    progress: ProgressOption = True,
) -> Costs:
    """Time calibrating on `tokens`, slicing by both methods in both orders with `config`, and evaluating the result.

    The calibration is neither read from nor written to the cache. Raises UserError for an offloaded model.
    """
    model, report = loaded.model, progress_callback(progress)
    if is_offloaded(model):
        raise UserError("a benchmark of an offloaded model would time the disk; leave the device map out")
    timer, scale = InterleavedTimer(model, tokens), REFERENCE_TOKENS / tokens.numel()

    def reference_forwards(forwards: float, algebra: float) -> float:
        return (forwards * scale + algebra) / REFERENCE_TOKENS

    with tempfile.TemporaryDirectory() as folder, patch.dict(os.environ, INTRASLICE_CACHE=folder):
        # After the last event the calibration is saved.
        stats, passing, closing = timer.time(lambda events: calibrate(loaded, tokens, targets, progress=events), report)
    algebra = closing + timer.repeat(lambda progress: replace(stats).make_profile(progress=progress), report)
    ratios = {"calibrate": reference_forwards(passing - closing, algebra)}

    def slicing(method: str, order: Order) -> Job[PreTrainedModel]:
        plan = plan_by(method, model, stats, replace(config, order=order))
        return lambda progress: slice_by(method, model, plan, replace(stats), tokens, progress=progress)

    for job, method in SLICE_JOBS.items():
        with suppress(UserError) if method == "crossmodule" else nullcontext():  # some families have no such slices
            algebra = timer.repeat(slicing(method, "one-shot"), report)
            sliced, passing, _ = timer.time(slicing(method, "sequential"), report)
            ratios[f"{job}_sequential"] = reference_forwards(max(passing - algebra, 0.0), algebra)
            ratios[f"{job}_one_shot"] = reference_forwards(0.0, algebra)
    perplexity_tokens = timer.repeat(lambda progress: perplexity(sliced, windows, progress=progress), report)
    ratios["perplexity"] = perplexity_tokens / windows.numel()
    speeds = measure_speed({"dense": model, "sliced": sliced}, progress=report)
    for phase in ("prefill", "decode"):
        ratios[phase] = getattr(speeds["dense"], phase) / getattr(speeds["sliced"], phase)
    plans = []  # seconds
    for _ in range(PLANS + 1):  # the first one ranks the units of the calibration and is not counted
        start = clock(model.device)
        plan_by("intraslice", model, stats, config)
        plans.append(clock(model.device) - start)
    return Costs(ratios, 1000 * median(plans[1:]), 1000 * median(timer.dense))


def measure_shapes(
    loaded: LoadedModel,
    tokens: Tokens,
    windows: Windows,
    config: SliceConfig,
    targets: Targets = "sampled",
    *,
    progress: ProgressOption = True,
) -> dict[str, dict[str, float]]:
    """Slice one-shot into free shapes and into those of every preset of alignments, and time the models in turns.

    By shapes: seconds per token of prefill and decode, relative to the dense model's, and perplexity. Presets that
    cannot reach the sparsity are left out.
    """
    model, report = loaded.model, progress_callback(progress)
    stats = calibrate(loaded, tokens, targets, progress=report)
    models = {"dense": model}
    for name, shapes in {FREE: FREE, **PRESETS}.items():
        aligned = replace(config, shapes=shapes, order="one-shot")
        try:
            plan = plan_by("intraslice", model, stats, aligned)
        except UserError:
            if name == FREE:
                raise
            continue
        models[name] = slice_by("intraslice", model, plan, stats, tokens, progress=report)
    speeds = measure_speed(models, progress=report)
    dense = speeds.pop("dense")
    return {
        name: {
            "prefill": dense.prefill / speed.prefill,
            "decode": dense.decode / speed.decode,
            "perplexity": perplexity(models[name], windows, progress=report),
        }
        for name, speed in speeds.items()
    }
