"""What slicing costs, in dense forwards of the same model in the same precision, which machines and loads agree on.

The unit of calibrating and slicing is the model's own forward, logits included, over the usual calibration (32 x 512
tokens). Fewer tokens will do to measure it: what passes tokens is scaled by their number. Linear algebra costs the same
on any number, so it is timed apart (the profile and keeping the calibration; for the sequential order the one-shot one)
and not scaled. Times of several CPU threads count how long they wait for each other: on a busy machine that is most of
a small job.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from statistics import fmean, median
from typing import Generic, TypeVar

import torch
from jaxtyping import Int
from torch import Tensor
from transformers import PreTrainedModel

from intraslice.calibration.driver import calibrate
from intraslice.calibration.stats import CalibrationStats
from intraslice.core.cache import empty_cache
from intraslice.core.config import CalibrationConfig, Order, SliceConfig, Targets
from intraslice.core.errors import UserError
from intraslice.core.progress import Progress, ProgressCallback, progress_callback
from intraslice.evaluation.perplexity import perplexity
from intraslice.evaluation.speed import measure_speed
from intraslice.loading import LoadedModel
from intraslice.methods.registry import Tokens, plan_by, slice_by
from intraslice.modeling.offload import is_offloaded

T = TypeVar("T")
Work = Callable[[ProgressCallback], T]
USUAL_TOKENS = CalibrationConfig().sequences * CalibrationConfig().length
# Jobs and their methods; what the last one makes is read and written with.
SLICED = {"slice_crossmodule": "crossmodule", "slice": "intraslice"}
REPEATS = 3  # of what is short
PLANS = 9
DENSE_SHARE = 1 / 4  # dense forwards get this much of a job's own time, in turns with it


@dataclass(frozen=True)
class Costs:
    """What each job costs one model in one precision.

    `ratios` of calibrating and slicing are in dense forwards over the usual calibration, that of perplexity in dense
    forwards over the same text, prefill and decode in the dense model's seconds a token (below 1 is faster).
    """

    ratios: dict[str, float]
    plan_ms: float
    dense_ms: float  # a token of a dense forward


def clock(device: torch.device) -> float:
    """Seconds, to take differences of: this process's CPU time or, on a GPU, wall time once its work is done."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        return time.perf_counter()
    return time.process_time()


@dataclass(frozen=True)
class Timed(Generic[T]):
    """What a job returned, and how many tokens a dense forward passes in its time, and in that after its last event."""

    value: T
    worth: float
    last: float


class Turns:
    """Times jobs in turns with dense forwards, so that a busy machine slows both alike."""

    def __init__(self, model: PreTrainedModel, tokens: Int[Tensor, "sequences length"]) -> None:
        batch = 512 if model.device.type == "cpu" else 2048  # tokens; as efficient there as more would be
        self._model, self._batch = model, tokens[: max(1, batch // tokens.shape[1])].to(model.device)
        self.dense: list[float] = []  # seconds a token of every dense forward
        self._forward()  # warms up

    @torch.no_grad()
    def _forward(self) -> float:
        start = clock(self._model.device)
        self._model(input_ids=self._batch, use_cache=False)
        return (clock(self._model.device) - start) / self._batch.numel()

    def time(self, job: Work[T], progress: ProgressCallback) -> Timed[T]:
        """Run a job, whose callback runs the dense forwards that it is compared with; these are not counted."""
        spent, before, start = 0.0, len(self.dense), clock(self._model.device)

        def between(event: Progress) -> None:
            nonlocal spent, start
            spent += clock(self._model.device) - start
            if sum(self.dense[before:]) * self._batch.numel() <= DENSE_SHARE * spent:
                self.dense.append(self._forward())
            progress(event)
            start = clock(self._model.device)

        value = job(between)
        last = clock(self._model.device) - start
        token = fmean(self.dense[before:])
        return Timed(value, (spent + last) / token, last / token)

    def repeat(self, job: Work[T], progress: ProgressCallback) -> float:
        """The median worth of a short job."""
        return median(self.time(job, progress).worth for _ in range(REPEATS))


def measure_costs(
    loaded: LoadedModel,
    tokens: Tokens,
    windows: Int[Tensor, "windows window"],
    config: SliceConfig,
    targets: Targets = "sampled",
    *,
    progress: ProgressCallback | bool = True,
) -> Costs:
    """Calibrate on `tokens`, slice by both methods in both orders as `config` says, and use what comes out.

    The calibration is made anew, whatever is on disk, and kept nowhere. Raises UserError for an offloaded model.
    """
    model, report = loaded.model, progress_callback(progress)
    if is_offloaded(model):
        raise UserError("a benchmark of a model on disk times the disk; leave the device map out")
    turns, scale = Turns(model, tokens), USUAL_TOKENS / tokens.numel()

    def usual(passing: float, algebra: float) -> float:
        return (passing * scale + algebra) / USUAL_TOKENS

    with empty_cache():
        calibration = turns.time(lambda progress: calibrate(loaded, tokens, targets, progress=progress), report)
    stats, closing = calibration.value, calibration.last  # once all tokens have passed, it is kept on disk
    algebra = closing + turns.repeat(partial(_profile, stats), report)
    ratios = {"calibrate": usual(calibration.worth - closing, algebra)}

    def slicing(method: str, order: Order) -> Work[PreTrainedModel]:
        ordered = replace(config, order=order, iterative=config.iterative and order == "sequential")
        plan = plan_by(method, model, stats, ordered)
        return lambda progress: slice_by(method, model, plan, stats, tokens, progress=progress)

    for job, method in SLICED.items():
        algebra = turns.repeat(slicing(method, "one-shot"), report)
        sequential = turns.time(slicing(method, "sequential"), report)
        ratios[f"{job}_sequential"] = usual(max(sequential.worth - algebra, 0.0), algebra)
        ratios[f"{job}_one_shot"] = usual(0.0, algebra)
    sliced = sequential.value
    passing = turns.repeat(lambda progress: perplexity(sliced, windows, progress=progress), report)
    ratios["perplexity"] = passing / windows.numel()
    speeds = measure_speed({"dense": model, "sliced": sliced}, progress=report)
    for phase in ("prefill", "decode"):
        ratios[phase] = getattr(speeds["dense"], phase) / getattr(speeds["sliced"], phase)
    return Costs(ratios, 1000 * _plan_seconds(model, stats, config), 1000 * median(turns.dense))


def _profile(stats: CalibrationStats, progress: ProgressCallback) -> None:
    """Compute the profile of a calibration anew."""
    progress(Progress("profile", 0, 1))
    _ = replace(stats).profile
    progress(Progress("profile", 1, 1))


def _plan_seconds(model: PreTrainedModel, stats: CalibrationStats, config: SliceConfig) -> float:
    """Of one plan, once the calibration's units are ranked."""
    seconds = []
    for _ in range(PLANS + 1):  # the first one ranks them
        start = clock(model.device)
        plan_by("intraslice", model, stats, config)
        seconds.append(clock(model.device) - start)
    return median(seconds[1:])
