"""Sweeps for the page: the library's points, which it keeps on disk one by one, as plain numbers."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import pandas
import torch

from components.i18n.language import LazyString, lazy_gettext
from components.jobs import limits, status
from components.jobs.job import Job
from components.jobs.status import Status
from components.state.request import Request
from components.state.session import Session
from components.sweep.charts import line_name
from components.sweep.views import SweepChoice, SweepPoint, SweepView
from intraslice.core.config import SliceConfig
from intraslice.core.errors import UserError
from intraslice.core.progress import Progress, ProgressCallback
from intraslice.core.registry import ESTIMATORS
from intraslice.evaluation.divergence import DenseStates
from intraslice.evaluation.speed import SpeedConfig
from intraslice.evaluation.sweep import Point, Texts, kept_points, points, sweep
from intraslice.loading import LoadedModel
from intraslice.methods.registry import METHODS
from intraslice.reporting import records

NONE_CHOSEN = {
    "methods": lazy_gettext("No method is chosen. Choose at least one."),
    "estimators": lazy_gettext("No estimator is chosen. Choose at least one."),
    "sparsities": lazy_gettext("No sparsity is chosen. Choose at least one."),
}


class Plan(NamedTuple):
    """Everything the library wants to know for a sweep."""

    loaded: LoadedModel
    texts: Texts
    wanted: tuple[Point, ...]
    base: SliceConfig
    speed: SpeedConfig | None

    def kept(self) -> tuple[Point, ...]:
        """The points that are on the disk already."""
        return kept_points(*self)

    def frame(self) -> pandas.DataFrame:
        """The rows of the kept points, as the command line writes them."""
        return sweep(*self._replace(wanted=self.kept()), progress=False)


def asked_points(request: Request, choice: SweepChoice) -> tuple[SliceConfig, tuple[Point, ...]]:
    """What all points have in common, and the points. Touches no model.

    Raises UserError for an empty choice, for what is nothing to choose, for too many points or numbers out of range.
    """
    lists = {name: values for name, values in choice._asdict().items() if name != "speed"}
    for name, values in lists.items():
        if not isinstance(values, (list, tuple)):
            raise UserError(lazy_gettext("{name} must be a list, got {value}.", name=name, value=limits.shown(values)))
        if not values:
            raise UserError(NONE_CHOSEN[name])
    if (count := math.prod(map(len, lists.values()))) > (max_points := limits.SWEEP.value):
        raise UserError(
            lazy_gettext(
                "A sweep may have at most {limit:,} points, got {count:,}. Choose fewer {lists}.",
                count=count,
                limit=max_points,
                lists=", ".join(lists),
            )
        )
    for kind, names, registered in (("method", choice.methods, METHODS), ("estimator", choice.estimators, ESTIMATORS)):
        for name in names:
            limits.choice(kind, name, registered)
    base = replace(request.slicing, locked=())  # what is given by hand belongs to one sparsity alone
    fractions = [limits.number("sparsity", percent, 0, 80) / 100 for percent in choice.sparsities]
    for fraction in fractions:
        replace(base, sparsity=fraction)
    return base, points(choice.methods, choice.estimators, fractions)


def plan_of(session: Session, request: Request, choice: SweepChoice) -> Plan:
    """Raises UserError as `asked_points` does, or before the calibration is there."""
    base, wanted = asked_points(request, choice)
    calibrated = session.calibrated(request)
    texts = Texts(calibrated.stats, calibrated.tokens, calibrated.windows, calibrated.training)
    return Plan(calibrated.loaded, texts, wanted, base, SpeedConfig() if choice.speed else None)


def known(session: Session, request: Request, choice: SweepChoice) -> SweepView:
    """Whatever of the sweep is there already. Raises UserError as `plan_of` does."""
    return _view(session, request, plan_of(session, request, choice))


def seconds(session: Session, request: Request, choice: SweepChoice) -> float:
    """About how long the missing points will take on this machine, as busy as it is now."""
    plan = plan_of(session, request, choice)
    kept = set(plan.kept())
    return sum(_cost(plan, point) for point in plan.wanted if point not in kept) / _rate()


def run_sweep(job: Job, session: Session, request: Request, choice: SweepChoice) -> None:
    """Measure the missing points one by one; emits progress, and all there is whenever a point is done."""
    asked_points(request, choice)  # before any work
    session.calibrations.calibrate(job, request.calibration)
    plan = plan_of(session, request, choice)
    kept = plan.kept()
    job.checkpoint()
    missing, states = [point for point in plan.wanted if point not in kept], DenseStates(plan.loaded.model)
    costs, rate = [_cost(plan, point) for point in missing], _rate()
    job.emit(_view(session, request, plan))
    start = time.monotonic()
    for done, point in enumerate(missing):
        begun = time.monotonic()
        if done:  # from the second point on, the sweep's own pace foretells best
            rate = sum(costs[:done]) / (begun - start)
        name = LazyString(partial(line_name, point.method, point.estimator or ""))
        words = lazy_gettext("Sweep: {name} at {sparsity:.0%}; points", name=name, sparsity=point.sparsity)
        expected_end = begun + sum(costs[done:]) / rate
        progress = _point_progress(job, Status(words, "busy", done, len(missing)), expected_end)
        sweep(*plan._replace(wanted=(point,)), states, progress=progress)
        job.emit(_view(session, request, plan))
    job.emit(session.ready(request))


def _point_progress(job: Job, status_of_point: Status, expected_end: float) -> ProgressCallback:
    """A callback that emits the status of a sweep's point with the time that is left for all points."""
    moment = -math.inf

    def progress(_: Progress) -> None:
        nonlocal moment
        if time.monotonic() < moment + status.EVERY:
            job.checkpoint()
            return
        moment = time.monotonic()
        job.emit(replace(status_of_point, seconds_left=max(0.0, expected_end - moment)))

    return progress


def table(job: Job, session: Session, request: Request, choice: SweepChoice) -> list[dict[str, Any]]:
    """`run_sweep`, and then the rows that `python -m intraslice sweep --json` prints."""
    run_sweep(job, session, request, choice)
    return records(plan_of(session, request, choice).frame())


def write_csv(session: Session, request: Request, choice: SweepChoice, path: Path) -> None:
    """The points that are there, as `python -m intraslice sweep --csv` writes them. Raises UserError for none."""
    frame = plan_of(session, request, choice).frame()
    if frame.empty:
        raise UserError(lazy_gettext("No point of this sweep is measured yet. Press Run the sweep."))
    frame.to_csv(path, index=False)


def _view(session: Session, request: Request, plan: Plan) -> SweepView:
    rows = records(plan.frame())
    return SweepView(
        dense=rows[0]["dense_perplexity"] if rows else None,
        points=tuple(_point(row) for row in rows),
        wanted=len(plan.wanted),
        protocol=session.perplexities(request).protocol,
        speed_protocol=_speed_protocol(plan.speed, session.threads()) if plan.speed else "",
    )


def _point(row: Mapping[str, Any]) -> SweepPoint:
    count = row.get("sliced_total")
    return SweepPoint(
        row["method"],
        row["estimator"] or "",
        row["sparsity"],
        row["removed_fraction"],
        int(count) if count is not None else None,
        row["perplexity"],
        row.get("prefill_ratio"),
        row.get("decode_ratio"),
        row["note"] or "",
        row["divergence"],
    )


def _speed_protocol(speed: SpeedConfig, threads: str) -> str:
    return lazy_gettext(
        "Speed of one sequence{threads}, dense and sliced in turn, medians of {repeats} runs: prefill of "
        "{prompt} tokens, then decoding of {new}, one at a time.",
        threads=threads,
        repeats=speed.repeats,
        prompt=speed.prompt,
        new=speed.new,
    )


def _cost(plan: Plan, point: Point) -> float:
    """About what a point computes, in floating-point operations: every token costs two a parameter."""
    read = plan.texts.calibration.numel()
    tokens = plan.texts.evaluation.numel() + LINEAR_ALGEBRA
    method = METHODS[point.method]
    recovers = method.recovery(plan.base) != "none"
    if recovers or (method.uses_order and plan.base.order == "sequential"):
        tokens += 2 * read
    if recovers:
        tokens += (1 + 3 * plan.base.epochs) * plan.texts.read_by(point.method, plan.base).numel()
    if method.uses_order and plan.base.iterative:
        tokens += 20 * read
    if plan.speed:  # a token written alone costs like many that are read together
        tokens += 2 * (plan.speed.repeats + 1) * (plan.speed.prompt + 10 * plan.speed.new)
    return 2.0 * tokens * sum(parameter.numel() for parameter in plan.loaded.model.parameters())


def _rate() -> float:
    """Floating-point operations a second of this machine, with what else it is doing now."""
    size = 512
    matrix = torch.ones(size, size)
    start = time.perf_counter()
    for _ in range(8):
        matrix @ matrix
    return 8 * 2 * size**3 / (time.perf_counter() - start)


LINEAR_ALGEBRA = 3000  # tokens that take as long to read as the principal axes of one slice take to find
