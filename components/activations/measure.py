"""Activation shift: intra-module against cross-module slicing at equal removed parameters, cached by `slice_key`."""

from collections.abc import Iterator
from dataclasses import replace
from functools import partial

from transformers import PreTrainedModel

from intraslice.diagnostics.shift import PLACES, Distribution, ShiftReport, measure_shift
from intraslice.modeling.counts import parameters_of
from intraslice.token_windows import describe

from ..i18n.language import LazyString, gettext, lazy_gettext, translate
from ..jobs.job import Job
from ..jobs.jobs import job_progress
from ..jobs.status import Status
from ..state.caches import BoundedCache
from ..state.precomputed import SHIFT
from ..state.request import Request, SliceKey
from ..state.session import Session
from ..state.units import nearest_plan, note_of
from .views import Histogram, MethodShift, PlaceShift, ShiftView

TOKENS = 1024  # more tokens change the medians by less than the width of a chart line
NAMES: dict[str, str] = {"intraslice": "IntraSlice", "crossmodule": lazy_gettext("cross-module")}


class ShiftViews:
    """Cached measurements by model, calibration, setting and method, and the setting that each client saw last."""

    def __init__(self, session: Session) -> None:
        self.session = session
        self._shifts: BoundedCache[SliceKey, tuple[MethodShift, int]] = BoundedCache(60)  # about 200 kB each
        self._shown: BoundedCache[str, Request] = BoundedCache(1000)

    def view(self, request: Request, client: str) -> ShiftView | None:
        """The measurement of a setting; else the one the client saw last, or the precomputed one, or None."""
        if self.is_measured(request):
            self._shown.put(client, request)
        if (exact := self.exact_view(request)) is not None:
            return exact
        last = self._shown.get(client)
        if last and last.calibration == request.calibration and self.is_measured(last):
            return self._view(last)
        return self._precomputed(request)

    def exact_view(self, request: Request) -> ShiftView | None:
        """The measurement of exactly this setting."""
        if self.is_measured(request):
            return self._view(request)
        return self._precomputed(request) if request.slicing == self.session.opening.slicing else None

    def is_measured(self, request: Request) -> bool:
        """Whether exactly this setting is measured, by IntraSlice at least; a forgotten calibration takes it along."""
        return self.session.is_calibrated(request) and self._shifts.get(request.slice_key("intraslice")) is not None

    def may_measure(self, request: Request) -> bool:
        """Whether a measurement may start automatically: slow slicing runs only on request."""
        if request.slicing.sparsity == 0 or not self.session.is_calibrated(request):
            return False
        return request.is_live or self.session.is_sliced(request)

    def measure(self, request: Request, client: str, viewed: Request) -> Iterator[Status]:
        """`measure_both` as a job, which ends when the client views another setting or leaves the tab."""
        work = partial(self.measure_both, request=request)
        jobs, ready = self.session.jobs, partial(self.session.ready, request)
        yield from jobs.run(client, "shift", work, ready=ready, request=viewed, tab="activations")

    def measure_both(self, job: Job, request: Request) -> None:
        """Slice by both methods and measure each, inside a job; `view` has the partial result."""
        sliced: dict[str, PreTrainedModel] = {}
        for method in NAMES:
            if self._shifts.get(request.slice_key(method)) is not None:
                continue
            dense = self.session.calibrations.load(job, request.calibration).model
            if method == "crossmodule" and not nearest_plan(dense, request.slicing.sparsity)[1]:
                continue
            sliced[method] = self.session.slice(job, request, method)
            if not request.is_live:  # show the first method at once: slicing the second takes a minute
                self._compare(job, request, sliced)
                sliced = {}
        if sliced:
            self._compare(job, request, sliced)

    def _compare(self, job: Job, request: Request, sliced: dict[str, PreTrainedModel]) -> None:
        """Measure several methods in one pass of the dense model."""
        calibrated = self.session.calibrations.calibrate(job, request.calibration)
        dense, windows = calibrated.loaded.model, calibrated.windows
        tokens = windows[: max(1, TOKENS // windows.shape[1])]
        names = LazyString(lambda: gettext(" and ").join(translate(NAMES[method]) for method in sliced))
        label = lazy_gettext("Comparing activations ({names}), window", names=names)
        report = measure_shift(dense, sliced, tokens, progress=job_progress(job, label))
        for method, model in sliced.items():
            measured = _summary(report, method, dense, model), report.massive
            self._shifts.put(request.slice_key(method), measured)

    def _precomputed(self, request: Request) -> ShiftView | None:
        """The measurement of the default setting."""
        found = self.session.precomputed.find(SHIFT, request.calibration, ShiftView)
        return replace(found.value, source=found.source) if found else None

    def _view(self, request: Request) -> ShiftView:
        calibrated = self.session.calibrated(request)
        windows, window = calibrated.windows.shape
        cached = {method: self._shifts.get(request.slice_key(method)) for method in NAMES}
        measurements = {method: measured for method, measured in cached.items() if measured is not None}
        missing = ""
        if "crossmodule" not in measurements:
            plan, is_close = nearest_plan(calibrated.loaded.model, request.slicing.sparsity)
            fast = lazy_gettext("Cross-module slicing at the same sparsity follows in a moment.")
            slow = lazy_gettext("Cross-module slicing at the same sparsity follows; it takes a minute or two.")
            missing = note_of(plan) if not is_close else fast if request.is_live else slow
        return ShiftView(
            target_sparsity=request.slicing.sparsity,
            methods={method: measured[0] for method, measured in measurements.items()},
            tokens=min(windows, max(1, TOKENS // window)) * window,
            window=window,
            massive=measurements["intraslice"][1],
            text=describe(request.calibration.config.text),
            missing=missing,
            order=request.slicing.order,
        )


def _summary(report: ShiftReport, method: str, dense: PreTrainedModel, sliced: PreTrainedModel) -> MethodShift:
    counts = parameters_of(dense, "dense") | parameters_of(sliced, "sliced")
    places: dict[str, list[PlaceShift]] = {place: [] for place in PLACES}
    before: dict[str, list[Histogram]] = {place: [] for place in PLACES}
    for shift in report.shifts:
        if shift.method == method:
            numbers = shift.error, shift.massive_error, shift.cosine, shift.massive_cosine, shift.distance
            sliced_values, dense_values = (
                report.distributions[name, shift.layer, shift.place] for name in (method, "dense")
            )
            places[shift.place].append(PlaceShift(*numbers, _histogram(sliced_values)))
            before[shift.place].append(_histogram(dense_values))
    return MethodShift(1 - counts["sliced_decoder"] / counts["dense_decoder"], places, before)


def _histogram(values: Distribution) -> Histogram:
    low, high = values.edges[0].item(), values.edges[-1].item()
    return Histogram(low, high, values.density.tolist(), values.mean, values.spread, values.kurtosis)
