"""What one more parameter costs in every module of the page's slice, and where other estimators' plans part from it.

That of the default setting is kept in the repository (`make_snapshots.py`), so that the page has it at once.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, replace

import numpy as np

from components.assets import ASSETS
from components.i18n.language import lazy_gettext
from components.jobs.job import Job
from components.jobs.jobs import job_progress
from components.jobs.status import Status
from components.jobs.turns import Urgency
from components.ratios.prices.views import Exchanged, ModulePrice, OtherPlan, Parting, PriceView
from components.state.caches import BoundedCache
from components.state.calibrations import Calibrated
from components.state.request import Request, SliceKey, default_slicing
from components.state.session import Session
from components.state.snapshots import modules as modules_file
from intraslice.core.errors import UserError
from intraslice.core.progress import ProgressCallback, progress_callback
from intraslice.core.registry import ESTIMATORS
from intraslice.diagnostics.prices import (
    Price,
    Prices,
    best_exchange,
    cost_of,
    disagreements,
    kept_prices,
    measure_prices,
    predicted_price,
)
from intraslice.evaluation.perplexity import Estimate
from intraslice.planning.profile import Profile
from intraslice.planning.ratios import SlicePlan, make_plan
from intraslice.slicing.driver import slice_model

FILE = ASSETS / "prices.json"
PARTINGS = 4  # modules named, of those on which two plans part most
NOTHING = lazy_gettext("At 0 % nothing is removed, so there is no marginal cost to measure. Move the slider first.")


class PriceViews:
    """What has been measured, by slice, as it is before any recovery."""

    def __init__(self, session: Session) -> None:
        self._session = session
        self._known: BoundedCache[SliceKey, PriceView] = BoundedCache(100)

    def known(self, request: Request) -> PriceView | None:
        """The prices, where all are measured, or those of the page's first setting, kept in the repository.

        Raises UserError where this model cannot be sliced so.
        """
        request = request.without_recovery
        key = request.slice_key("intraslice")
        if (view := self._known.get(key)) is not None:
            return view
        source = self._session.source(request)
        if source is None or not request.slicing.sparsity:
            return None
        plan = self._session.slice_plan(request)
        if self._session.is_calibrated(request):
            calibrated = self._session.calibrated(request)
            found = kept_prices(calibrated.loaded, calibrated.stats, plan, calibrated.windows)
            if found is not None:
                return self._known.put(key, price_view(found, calibrated.source.profile, plan, _words(found)))
        return _kept(source.profile, plan) if request.is_default and FILE.is_file() else None

    def measure(self, request: Request, client: str) -> Iterator[Status | PriceView]:
        """Measure what is not measured yet; ends with the view or an error status. What is done is kept."""

        request = request.without_recovery

        def work(job: Job) -> None:
            if not request.slicing.sparsity:
                raise UserError(NOTHING)
            calibrated = self._session.calibrations.calibrate(job, request.calibration)
            sliced, plan = self._session.slice(job, request), self._session.slice_plan(request)
            progress = job_progress(job, lazy_gettext("Slicing one module more and less:"))
            loaded, stats, windows = calibrated.loaded, calibrated.stats, calibrated.windows
            prices = measure_prices(loaded, stats, sliced, plan, windows, progress=progress)
            view = price_view(prices, calibrated.source.profile, plan, _words(prices))
            job.emit(self._known.put(request.slice_key("intraslice"), view))

        yield from self._session.jobs.run(client, "prices", work, urgency=Urgency.BACKGROUND)


def first_measurement(calibrated: Calibrated, progress: ProgressCallback | bool = True) -> Prices:
    """Measure the prices of the page's first setting."""
    loaded, stats, report = calibrated.loaded, calibrated.stats, progress_callback(progress)
    plan = make_plan(calibrated.source.profile, default_slicing())
    sliced = slice_model(loaded.model, plan, stats, progress=report)
    return measure_prices(loaded, stats, sliced, plan, calibrated.windows, progress=report)


def price_view(prices: Prices, profile: Profile, plan: SlicePlan, measured_on: str) -> PriceView:
    """Measurements, what the estimators foretell of them, and other plans of equal size, as plain numbers."""
    middle = float(np.median([price.estimate().value for price in prices.modules]))
    predicted = {
        name: _over_median([predicted_price(price, profile, name) for price in prices.modules])
        for name in profile.estimators
    }

    def module(index: int, price: Price) -> ModulePrice:
        value, error = price.estimate()
        times = {name: values[index] for name, values in predicted.items()}
        return ModulePrice(price.layer, price.module, price.ratio, value / middle, (error or 0.0) / abs(middle), times)

    modules = {id(price): module(index, price) for index, price in enumerate(prices.modules)}
    best, exchanged = best_exchange(prices, plan.config.cap), None
    if best is not None:
        giver, taker = modules[id(best.giver)], modules[id(best.taker)]
        change, error = best.change
        exchanged = Exchanged(giver, taker, best.parameters / prices.decoder, change, error or 0.0)
    others = tuple(
        filter(None, (_other(name, prices, profile, plan) for name in ESTIMATORS if name != plan.config.estimator))
    )
    return PriceView(prices.divergence.value, tuple(modules.values()), exchanged, others, measured_on)


def _over_median(values: list[float]) -> list[float]:
    middle = float(np.median(values))
    return [value / middle if middle > 0 else 0.0 for value in values]


def _other(name: str, prices: Prices, profile: Profile, plan: SlicePlan) -> OtherPlan | None:
    """None where the estimator has no such plan: its importances are not there, or the cap is in its way."""
    try:
        other = make_plan(profile, replace(plan.config, estimator=name, locked=()))
        differences = disagreements(plan, other, profile)
    except UserError:
        return None
    change, error = cost_of(prices, differences)
    partings = tuple(Parting(one.layer, one.module, one.ratio, one.other) for one in differences[:PARTINGS])
    return OtherPlan(name, change, error or 0.0, partings)


def _words(prices: Prices) -> str:
    return lazy_gettext("{tokens:,} held-out tokens", tokens=prices.tokens)


def _kept(profile: Profile, plan: SlicePlan) -> PriceView:
    record = modules_file.load(FILE)
    prices = Prices(
        Estimate(*record["divergence"]),
        record["tokens"],
        record["decoder"],
        tuple(Price(**price) for price in record["modules"]),
    )
    return price_view(prices, profile, plan, record["measured_on"])


def save(prices: Prices) -> None:
    """Keep those of the page's first setting for it to open with."""
    modules_file.save(FILE, asdict(prices))
