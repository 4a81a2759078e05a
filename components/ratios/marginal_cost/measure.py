"""Marginal cost per parameter of every module of the slice, and the differences to other estimators' plans.

The measurement of the default setting is stored in the repository (`make_snapshots.py`): the page opens with it.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, replace

import numpy as np

from intraslice.core.errors import UserError
from intraslice.core.progress import ProgressCallback, progress_callback
from intraslice.core.registry import ESTIMATORS
from intraslice.diagnostics.marginal_costs import (
    MarginalCost,
    MarginalCosts,
    cached_marginal_costs,
    divergence_change,
    find_best_swap,
    measure_marginal_costs,
    plan_differences,
    predicted_cost,
)
from intraslice.evaluation.perplexity import Estimate
from intraslice.planning.profile import Profile
from intraslice.planning.ratios import SlicePlan, make_plan
from intraslice.slicing.driver import slice_model

from ...assets import ASSETS
from ...i18n.language import lazy_gettext
from ...jobs.job import Job
from ...jobs.jobs import job_progress
from ...jobs.status import Status
from ...jobs.turns import Urgency
from ...state.caches import BoundedCache
from ...state.calibrations import Calibrated
from ...state.request import Request, SliceKey, default_slicing
from ...state.session import Session
from ...state.snapshots import modules as modules_file
from .views import MarginalCostView, ModuleCost, OtherPlan, RatioDifference, Swap

JOB = "prices"  # the job's kind, which is also the endpoint's name
FILE = ASSETS / "prices.json"
MAX_DIFFERENCES = 4  # modules listed, those with the largest difference between two plans
NOTHING = lazy_gettext("At 0% nothing is removed, so there is no marginal cost to measure. Move the slider first.")


class MarginalCostCache:
    """Cached measurements, by slice before recovery."""

    def __init__(self, session: Session) -> None:
        self._session = session
        self._views: BoundedCache[SliceKey, MarginalCostView] = BoundedCache(100)

    def cached(self, request: Request) -> MarginalCostView | None:
        """The marginal costs if all are measured, or the stored ones of the default setting.

        Raises UserError for an impossible setting.
        """
        request = request.without_recovery
        key = request.slice_key("intraslice")
        if (view := self._views.get(key)) is not None:
            return view
        source = self._session.source(request)
        if source is None or not request.slicing.sparsity:
            return None
        plan = self._session.slice_plan(request)
        if self._session.is_calibrated(request):
            calibrated = self._session.calibrated(request)
            costs = cached_marginal_costs(calibrated.loaded, calibrated.stats, plan, calibrated.windows)
            if costs is not None:
                return self._views.put(
                    key, marginal_cost_view(costs, calibrated.source.profile, plan, _measured_on(costs))
                )
        return _stored_view(source.profile, plan) if request.is_default and FILE.is_file() else None

    def measure(self, request: Request, client: str) -> Iterator[Status | MarginalCostView]:
        """Measure the missing modules; ends with the view or an error status. Finished modules are cached."""
        request = request.without_recovery

        def work(job: Job) -> None:
            if not request.slicing.sparsity:
                raise UserError(NOTHING)
            calibrated = self._session.calibrations.calibrate(job, request.calibration)
            sliced, plan = self._session.slice(job, request), self._session.slice_plan(request)
            progress = job_progress(job, lazy_gettext("Measuring marginal costs, one module at a time:"))
            loaded, stats, windows = calibrated.loaded, calibrated.stats, calibrated.windows
            costs = measure_marginal_costs(loaded, stats, sliced, plan, windows, progress=progress)
            view = marginal_cost_view(costs, calibrated.source.profile, plan, _measured_on(costs))
            job.emit(self._views.put(request.slice_key("intraslice"), view))

        yield from self._session.jobs.run(client, JOB, work, urgency=Urgency.BACKGROUND)


def first_measurement(calibrated: Calibrated, progress: ProgressCallback | bool = True) -> MarginalCosts:
    """Measure the marginal costs of the default setting."""
    loaded, stats, report = calibrated.loaded, calibrated.stats, progress_callback(progress)
    plan = make_plan(calibrated.source.profile, default_slicing())
    sliced = slice_model(loaded.model, plan, stats, progress=report)
    return measure_marginal_costs(loaded, stats, sliced, plan, calibrated.windows, progress=report)


def marginal_cost_view(costs: MarginalCosts, profile: Profile, plan: SlicePlan, measured_on: str) -> MarginalCostView:
    """Measured and predicted costs, and other plans of equal size, as plain numbers."""
    unit = typical([cost.estimate().value for cost in costs.modules])
    predictions = {name: [predicted_cost(cost, profile, name) for cost in costs.modules] for name in profile.estimators}
    units = {name: typical(values) for name, values in predictions.items()}

    def module_cost(index: int, cost: MarginalCost) -> ModuleCost:
        value, error = cost.estimate()
        predicted = {name: values[index] / units[name] for name, values in predictions.items()}
        return ModuleCost(cost.layer, cost.module, cost.ratio, value / unit, (error or 0.0) / unit, predicted)

    modules = {id(cost): module_cost(index, cost) for index, cost in enumerate(costs.modules)}
    best, best_swap = find_best_swap(costs, plan.config.cap), None
    if best is not None:
        source, target = modules[id(best.source)], modules[id(best.target)]
        change, error = best.change
        best_swap = Swap(source, target, best.parameters / costs.decoder, change, error or 0.0)
    others = tuple(
        filter(None, (_other_plan(name, costs, profile, plan) for name in ESTIMATORS if name != plan.config.estimator))
    )
    return MarginalCostView(costs.divergence.value, tuple(modules.values()), best_swap, others, measured_on)


def typical(costs: list[float]) -> float:
    """The median, of which the page shows multiples; that of the magnitudes, or 1, where noise leaves none above 0."""
    median = float(np.median(costs))
    return median if median > 0 else float(np.median(np.abs(costs))) or 1.0


def _other_plan(name: str, costs: MarginalCosts, profile: Profile, plan: SlicePlan) -> OtherPlan | None:
    """None if the estimator cannot make such a plan: it has no importances, or the cap prevents the size."""
    try:
        other = make_plan(profile, replace(plan.config, estimator=name, locked=()))
        differences = plan_differences(plan, other, profile)
    except UserError:
        return None
    change, error = divergence_change(costs, differences)
    largest = tuple(
        RatioDifference(difference.layer, difference.module, difference.ratio, difference.other)
        for difference in differences[:MAX_DIFFERENCES]
    )
    return OtherPlan(name, change, error or 0.0, largest)


def _measured_on(costs: MarginalCosts) -> str:
    return lazy_gettext("{tokens:,} held-out tokens", tokens=costs.tokens)


def _stored_view(profile: Profile, plan: SlicePlan) -> MarginalCostView:
    record = modules_file.load(FILE)
    costs = MarginalCosts(
        Estimate(*record["divergence"]),
        record["tokens"],
        record["decoder"],
        tuple(MarginalCost(**module) for module in record["modules"]),
    )
    return marginal_cost_view(costs, profile, plan, record["measured_on"])


def save(costs: MarginalCosts) -> None:
    """Store the default setting's marginal costs in the repository; the page opens with them."""
    modules_file.save(FILE, asdict(costs))
