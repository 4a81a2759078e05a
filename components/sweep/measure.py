"""Sweeps for the page: the library's points, which it caches on disk one by one, as plain numbers."""

import itertools
import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import fields, replace
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple, cast

import pandas
import torch

from intraslice.core import checks
from intraslice.core.config import SliceConfig
from intraslice.core.errors import UserError
from intraslice.core.progress import Progress, ProgressCallback
from intraslice.core.registry import ESTIMATORS
from intraslice.evaluation.perplexity import DenseStates
from intraslice.evaluation.speed import SpeedConfig
from intraslice.evaluation.sweep import DENSE, Point, Quantise, Texts, cached_points, points, sweep
from intraslice.loading import LoadedModel
from intraslice.methods.registry import METHODS
from intraslice.modeling.counts import decoder_parameters
from intraslice.records import records
from intraslice.recovery.registry import cost_of, training_bytes

from .. import limits
from ..i18n.language import LazyString, lazy_gettext
from ..jobs.job import Job
from ..jobs.status import Status
from ..state.request import Request
from ..state.session import Session
from ..state.settings import CONTROLS
from .charts import MARKERS, line_name
from .views import SweepChoice, SweepPoint, SweepView

NONE_CHOSEN = {
    "methods": lazy_gettext("No method is chosen. Choose at least one."),
    "estimators": lazy_gettext("No estimator is chosen. Choose at least one."),
    "sparsities": lazy_gettext("No sparsity is chosen. Choose at least one."),
    "quantise": lazy_gettext("No GGUF type is chosen. Choose at least one."),
}


class Plan(NamedTuple):
    """The arguments of the library's `sweep`."""

    loaded: LoadedModel
    texts: Texts
    points: tuple[Point, ...]
    base: SliceConfig
    speed: SpeedConfig | None

    def cached(self) -> tuple[Point, ...]:
        """The points that are cached on disk."""
        return cached_points(*self)

    def frame(self) -> pandas.DataFrame:
        """The rows of the cached points, as the command line writes them."""
        return sweep(*self._replace(points=self.cached()), progress=False)


def selected_points(request: Request, choice: SweepChoice) -> tuple[SliceConfig, tuple[Point, ...]]:
    """The base configuration and the points; loads no model. Raises UserError for a wrong choice or too many points."""
    lists = {name: values for name, values in choice._asdict().items() if name != "speed"}
    for name, values in lists.items():
        if not isinstance(values, (list, tuple)):
            raise UserError("{name} must be a list, got {value}.", name=name, value=checks.quoted(values))
        if not values:
            raise UserError(NONE_CHOSEN[name])
    if (count := math.prod(map(len, lists.values()))) > (max_points := limits.SWEEP.value):
        raise UserError(
            "A sweep may have at most {limit:,} points, got {count:,}. Choose fewer methods, estimators, "
            "sparsities or GGUF types.",
            count=count,
            limit=max_points,
        )
    chosen = (("method", choice.methods, METHODS), ("estimator", choice.estimators, ESTIMATORS))
    for kind, names, choices in (*chosen, ("GGUF type", choice.quantise, MARKERS)):
        for name in names:
            checks.one_of(kind, name, choices)
    base = replace(request.slicing, locked=())  # manual ratios belong to a single sparsity
    fractions = [CONTROLS["sparsity"].check(percent) for percent in choice.sparsities]
    for fraction in fractions:
        replace(base, sparsity=fraction)
    return base, points(choice.methods, choice.estimators, fractions, cast(Sequence[Quantise], choice.quantise))


def sweep_plan(session: Session, request: Request, choice: SweepChoice) -> Plan:
    """The plan of a sweep. Raises UserError as `selected_points` does, or if the model is not calibrated."""
    base, sweep_points = selected_points(request, choice)
    calibrated = session.calibrated(request)
    texts = Texts(calibrated.stats, calibrated.tokens, calibrated.windows, calibrated.training)
    return Plan(calibrated.loaded, texts, sweep_points, base, SpeedConfig() if choice.speed else None)


def cached_view(session: Session, request: Request, choice: SweepChoice) -> SweepView:
    """The points measured so far. Raises UserError as `sweep_plan` does."""
    return _view(session, request, sweep_plan(session, request, choice))


def estimated_seconds(session: Session, request: Request, choice: SweepChoice) -> float:
    """The estimated time for the missing points on this machine at its current load."""
    plan = sweep_plan(session, request, choice)
    cached = set(plan.cached())
    return sum(_flops(plan, point) for point in plan.points if point not in cached) / _flops_per_second()


def run_sweep(job: Job, session: Session, request: Request, choice: SweepChoice) -> None:
    """Measure the missing points one by one; emits progress, and the view after every point."""
    selected_points(request, choice)  # raises errors before any work
    calibrated = session.calibrations.calibrate(job, request.calibration)
    plan = sweep_plan(session, request, choice)
    cached = plan.cached()
    job.checkpoint()
    missing, states = [point for point in plan.points if point not in cached], DenseStates(plan.loaded.model)
    flops, rate = [_flops(plan, point) for point in missing], _flops_per_second()
    job.emit(_view(session, request, plan))
    start = time.monotonic()
    slices = itertools.groupby(missing, lambda point: replace(point, quantise="none"))  # each is sliced once
    for point, same_slice in ((point, tuple(group)) for point, group in slices):
        done = missing.index(same_slice[0])
        point_start = time.monotonic()
        if done:  # from the second point on, the sweep's own rate predicts best
            rate = sum(flops[:done]) / (point_start - start)
        name = LazyString(partial(line_name, point.method, point.estimator or ""))
        label = lazy_gettext("Sweep, {name} at {sparsity:.0%}: point", name=name, sparsity=point.sparsity)
        expected_end = point_start + sum(flops[done:]) / rate
        progress = _point_progress(job, Status(label, "busy", done, len(missing)), expected_end)
        with session.slice_memory.reserved(job, _bytes(plan, same_slice), calibrated):
            rows = sweep(*plan._replace(points=same_slice), states, progress=progress)
        job.emit(_view(session, request, plan))
        if set(same_slice) - set(plan.cached()):  # for want of memory, which the next run may have
            raise UserError(rows["note"].dropna().iloc[-1])


def _point_progress(job: Job, point_status: Status, expected_end: float) -> ProgressCallback:
    """A callback that emits the status of a point, with the time left for all points."""
    last_emitted = -math.inf

    def progress(_: Progress) -> None:
        nonlocal last_emitted
        if time.monotonic() < last_emitted + limits.STATUS_SECONDS:
            job.checkpoint()
            return
        last_emitted = time.monotonic()
        job.emit(replace(point_status, seconds_left=max(0.0, expected_end - last_emitted)))

    return progress


def table(job: Job, session: Session, request: Request, choice: SweepChoice) -> list[dict[str, Any]]:
    """Run the sweep; returns the rows that `python -m intraslice sweep --json` prints."""
    run_sweep(job, session, request, choice)
    return records(sweep_plan(session, request, choice).frame())


def write_csv(session: Session, request: Request, choice: SweepChoice, path: Path) -> None:
    """Write the measured points like `python -m intraslice sweep --csv`. Raises UserError if there are none."""
    frame = sweep_plan(session, request, choice).frame()
    if frame.empty:
        raise UserError("No point of this sweep has been measured yet. Press “Run the sweep”.")
    frame.to_csv(path, index=False)


def _view(session: Session, request: Request, plan: Plan) -> SweepView:
    rows = records(plan.frame())
    return SweepView(
        dense=rows[0]["dense_perplexity"] if rows else None,
        points=tuple(_point(row) for row in rows),
        total=len(plan.points),
        protocol=session.perplexities(request).protocol,
        speed_protocol=session.speed_protocol(**vars(plan.speed)) if plan.speed else "",
    )


def _point(row: Mapping[str, Any]) -> SweepPoint:
    names = {"target_sparsity": "sparsity", "removed": "removed_fraction", "parameters": "sliced_total"}
    names |= {"prefill": "prefill_ratio", "decode": "decode_ratio"}
    values: dict[str, Any] = {one.name: row.get(names.get(one.name, one.name)) for one in fields(SweepPoint)}
    sizes = {name: int(values[name]) for name in ("parameters", "bytes") if values[name] is not None}
    return SweepPoint(**values | sizes | {name: values[name] or "" for name in ("estimator", "note")})


def _bytes(plan: Plan, same_slice: Sequence[Point]) -> int:
    """Memory that points of one slice take, at most: the slice and its training, and its rounded copy in float32."""
    model, point = plan.loaded.model, same_slice[0]
    needed = 0
    if point.method != DENSE:
        recovery, text = METHODS[point.method].recovery(plan.base), plan.texts.tokens_for(point.method, plan.base)
        needed += sum(parameter.nbytes for parameter in model.parameters())
        needed += training_bytes(recovery, model, decoder_parameters(model), text.shape[1])
    if any(each.quantise != "none" for each in same_slice):
        numbers = [parameter.numel() for parameter in model.parameters()]
        needed += 4 * (sum(numbers) + 3 * max(numbers))  # what is made on the way of the largest matrix
    return needed


def _flops(plan: Plan, point: Point) -> float:
    """The estimated floating-point operations of a point: two per token and parameter."""
    forward = 2.0 * sum(parameter.numel() for parameter in plan.loaded.model.parameters())
    if point.method == DENSE:
        return forward * plan.texts.evaluation.numel()
    calibration_tokens = plan.texts.calibration.numel()
    tokens = plan.texts.evaluation.numel() + LINEAR_ALGEBRA_TOKENS
    method = METHODS[point.method]
    recovers = method.recovery(plan.base) != "none"
    if recovers or (method.uses_order and plan.base.order == "sequential"):
        tokens += 2 * calibration_tokens
    if recovers:
        training, dense = plan.texts.tokens_for(point.method, plan.base), plan.loaded.model
        cost = cost_of(dense, dense, training, method.recovery(plan.base), plan.base.epochs, calibration_tokens)
        tokens += round(sum(cost or ()) * calibration_tokens)
    if plan.speed and point.quantise == "none":  # a decoded token takes as long as about ten tokens of prefill
        tokens += 2 * (plan.speed.repeats + 1) * (plan.speed.prompt + 10 * plan.speed.new)
    return forward * tokens


def _flops_per_second() -> float:
    """Floating-point operations per second of this machine at its current load."""
    size = 512
    matrix = torch.ones(size, size)
    start = time.perf_counter()
    for _ in range(8):
        matrix @ matrix
    return 8 * 2 * size**3 / (time.perf_counter() - start)


LINEAR_ALGEBRA_TOKENS = 3000  # their forward pass takes as long as computing the principal axes of one slice
