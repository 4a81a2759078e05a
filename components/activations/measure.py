"""Activation shift as the page shows it: intra-module beside cross-module slicing at equal removed parameters.

Each method's measurement is kept by what it depends on: the cross-module one knows nothing of estimators, so it is
sliced once a sparsity and order.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

from transformers import PreTrainedModel

from components.activations import snapshot
from components.activations.views import Histogram, MethodShift, PlaceShift, ShiftView
from components.i18n.language import LazyString, gettext, lazy_gettext, translate
from components.jobs.job import Job
from components.jobs.jobs import job_progress
from components.jobs.status import Status
from components.jobs.turns import Urgency
from components.state.caches import BoundedCache
from components.state.choices import describe_text
from components.state.crossmodule import nearest_plan, note_of
from components.state.request import Request, SliceKey
from components.state.session import Session
from intraslice.diagnostics.distributions import Distribution
from intraslice.diagnostics.shift import PLACES, Shift, ShiftReport, measure_shift
from intraslice.modeling.counts import parameters_of

TOKENS = 1024  # medians over so many move by less than a line is thick
NAMES: dict[str, str] = {"intraslice": "IntraSlice", "crossmodule": lazy_gettext("cross-module")}


class ShiftViews:
    """What has been measured, by model, calibration, setting and method; and what each client looks at."""

    def __init__(self, session: Session) -> None:
        self._session = session
        self._shifts: BoundedCache[SliceKey, tuple[MethodShift, int]] = BoundedCache(60)  # some 200 kB each
        self._missing: BoundedCache[SliceKey, str] = BoundedCache(1000)
        self._shown: BoundedCache[str, Request] = BoundedCache(1000)
        self._kept = snapshot.shift()

    def view(self, request: Request, client: str) -> ShiftView | None:
        """The measurement of a setting; else what the client saw last, or the snapshot; None where nothing is known."""
        if self.is_measured(request):
            self._shown.put(client, request)
            return self._view(request)
        last = self._shown.get(client)
        if last and last.calibration == request.calibration and self.is_measured(last):
            return self._view(last)
        return self._kept if request.is_default_calibration else None

    def exactly(self, request: Request) -> ShiftView | None:
        """The measurement of this very setting, or the snapshot where it is of that."""
        if self.is_measured(request):
            return self._view(request)
        return self._kept if request.is_default else None

    def is_measured(self, request: Request) -> bool:
        """Whether anything is known of exactly this setting."""
        return self._shifts.get(request.slice_key("intraslice")) is not None

    def is_read(self, request: Request) -> bool:
        """Whether the sliced model's perplexity is known."""
        return self._session.perplexities(request).sliced is not None

    def may_measure(self, request: Request) -> bool:
        """Whether measuring may start by itself: what takes long is only sliced on request."""
        if request.slicing.sparsity == 0 or not self._session.is_calibrated(request):
            return False
        return request.is_live or self._session.is_sliced(request)

    def measure(self, request: Request, client: str) -> Iterator[Status]:
        """Slice by both methods and measure each; `view` tells how far it got. Gives way to slider and tabs."""
        follows = {"request": request, "tab": "activations"}
        work = partial(self.measure_both, request=request)
        yield from self._session.jobs.run(client, "shift", work, urgency=Urgency.FIRST, **follows)

    def measure_both(self, job: Job, request: Request) -> None:
        """What `measure` does."""
        keys = {method: request.slice_key(method) for method in NAMES}
        sliced: dict[str, PreTrainedModel] = {}
        for method, key in keys.items():
            if self._shifts.get(key) is not None or self._missing.get(key) is not None or self._refused(request, key):
                continue
            sliced[method] = self._session.slice(job, request, method)
            if not request.is_live:  # what there is need not wait for the other, which takes a minute
                self._compare(job, request, sliced)
                sliced = {}
        if sliced:
            self._compare(job, request, sliced)
        job.emit(self._session.ready(request))

    def _refused(self, request: Request, key: SliceKey) -> bool:
        """Whether the cross-module method cannot remove as much, which is noted."""
        if key[2] != "crossmodule":
            return False
        dense = self._session.calibrated(request).loaded.model
        plan, near = nearest_plan(dense, request.slicing.sparsity)
        if not near:
            self._missing.put(key, note_of(plan))
        return not near

    def _compare(self, job: Job, request: Request, sliced: dict[str, PreTrainedModel]) -> None:
        """Measure several methods in one pass of the dense model."""
        calibrated = self._session.calibrated(request)
        dense, windows = calibrated.loaded.model, calibrated.windows
        tokens = windows[: max(1, TOKENS // windows.shape[1])]
        names = LazyString(lambda: gettext(" and ").join(translate(NAMES[method]) for method in sliced))
        words = lazy_gettext("Comparing activations ({names}), window", names=names)
        report = measure_shift(dense, sliced, tokens, progress=job_progress(job, words))
        for method, model in sliced.items():
            measured = _summary(report, method, dense, model), report.massive
            self._shifts.put(request.slice_key(method), measured)

    def _view(self, request: Request) -> ShiftView:
        calibrated = self._session.calibrated(request)
        windows, window = calibrated.windows.shape
        found = {
            method: measured
            for method in NAMES
            if (measured := self._shifts.get(request.slice_key(method))) is not None
        }
        missing = self._missing.get(request.slice_key("crossmodule"))
        if missing is None and "crossmodule" not in found:
            soon = lazy_gettext("Cross-module slicing at the same sparsity follows in a moment.")
            slow = lazy_gettext("Cross-module slicing at the same sparsity follows; it takes a minute or two.")
            missing = soon if request.is_live else slow
        return ShiftView(
            asked=request.slicing.sparsity,
            methods={method: measured[0] for method, measured in found.items()},
            tokens=min(windows, max(1, TOKENS // window)) * window,
            window=window,
            massive=found["intraslice"][1],
            text=describe_text(request.calibration.config.text),
            missing=missing or "",
            order=request.slicing.order,
        )


def _summary(report: ShiftReport, method: str, dense: PreTrainedModel, sliced: PreTrainedModel) -> MethodShift:
    counts = parameters_of(dense, "dense") | parameters_of(sliced, "sliced")
    shifts = [shift for shift in report.shifts if shift.method == method]
    by_place = {place: [shift for shift in shifts if shift.place == place] for place in PLACES}
    found = report.distributions
    return MethodShift(
        removed=1 - counts["sliced_decoder"] / counts["dense_decoder"],
        places={
            place: [_place(shift, found[method, shift.layer, place]) for shift in shifts]
            for place, shifts in by_place.items()
        },
        dense={
            place: [_histogram(found["dense", shift.layer, place]) for shift in shifts]
            for place, shifts in by_place.items()
        },
    )


def _place(shift: Shift, distribution: Distribution) -> PlaceShift:
    return PlaceShift(
        shift.error,
        shift.massive_error,
        shift.cosine,
        shift.massive_cosine,
        shift.distance,
        _histogram(distribution),
    )


def _histogram(found: Distribution) -> Histogram:
    low, high = found.edges[0].item(), found.edges[-1].item()
    return Histogram(low, high, found.density.tolist(), found.mean, found.spread, found.kurtosis)
