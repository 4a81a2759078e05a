"""Estimator check: every module sliced alone, measured on held-out text, against the predicted damage.

The measurement of the default model is precomputed (`make_snapshots.py`): the page opens with it.
"""

from __future__ import annotations

from collections.abc import Iterator

from intraslice.diagnostics.sensitivity import Sensitivity, cached_sensitivity, compare_ranks, measure_sensitivity
from intraslice.planning.profile import Profile

from ..i18n.language import lazy_gettext
from ..jobs.job import Job, Urgency
from ..jobs.jobs import job_progress
from ..jobs.status import Status
from ..state.caches import BoundedCache
from ..state.calibrations import Calibrated
from ..state.precomputed import SENSITIVITY
from ..state.request import CalibrationKey, Request
from ..state.session import Session
from ..state.views import HERE, Provenance
from .views import EstimatorCheckView, Misjudged, ModuleCheck

JOB = "sensitivity"  # the job's kind, which is also the endpoint's name
RATIO = 0.3


class EstimatorCheckCache:
    """Cached measurements, by model and calibration."""

    def __init__(self, session: Session) -> None:
        self._session = session
        self._views: BoundedCache[CalibrationKey, EstimatorCheckView] = BoundedCache(100)

    def cached(self, request: Request) -> EstimatorCheckView | None:
        """The check if all modules are measured, or the precomputed one."""
        key = request.calibration
        if (view := self._views.get(key)) is not None:
            return view
        source = self._session.source(request)
        if source is None:
            return None
        if self._session.is_calibrated(request):
            calibrated = self._session.calibrated(request)
            sensitivity = cached_sensitivity(calibrated.loaded, calibrated.stats, calibrated.windows, RATIO)
            if sensitivity is not None:
                return self._view(key, calibrated, sensitivity)
        found = self._session.precomputed.find(SENSITIVITY, key, Sensitivity)
        return estimator_check_view(found.value, source.profile, source=found.source) if found else None

    def measure(self, request: Request, client: str) -> Iterator[Status | EstimatorCheckView]:
        """Measure the missing modules; ends with the view or an error status. Finished modules are cached."""

        def work(job: Job) -> None:
            calibrated = self._session.calibrations.calibrate(job, request.calibration)
            progress = job_progress(job, lazy_gettext("Slicing each module alone:"))
            loaded, stats, windows = calibrated.loaded, calibrated.stats, calibrated.windows
            sensitivity = measure_sensitivity(loaded, stats, windows, RATIO, progress=progress)
            job.emit(self._view(request.calibration, calibrated, sensitivity))

        yield from self._session.jobs.run(client, JOB, work, urgency=Urgency.BACKGROUND)

    def _view(self, key: CalibrationKey, calibrated: Calibrated, sensitivity: Sensitivity) -> EstimatorCheckView:
        view = estimator_check_view(sensitivity, calibrated.source.profile, rounding_note(key))
        return self._views.put(key, view)


def rounding_note(key: CalibrationKey) -> str:
    """A note on the rounding of a low precision; empty for float32."""
    if key.dtype == "float32":
        return ""
    return lazy_gettext(" in {dtype}, whose rounding alone adds about {nats:.3f} nats", dtype=key.dtype, nats=0.002)


def estimator_check_view(
    sensitivity: Sensitivity, profile: Profile, rounding: str = "", source: Provenance = HERE
) -> EstimatorCheckView:
    """Measured and predicted damage, as plain numbers."""
    agreement = compare_ranks(sensitivity, profile)
    assert sensitivity.ratio is not None  # measured alone, not in context
    modules = tuple(
        ModuleCheck(
            layer=int(row["layer"]),
            module=row["module"],
            damage=row["damage"],
            error=row["standard_error"] or 0.0,
            rank=int(row["place"]),
            predicted={name: row[name] for name in profile.estimators},
            predicted_ranks={name: int(row[f"place_{name}"]) for name in profile.estimators},
        )
        for _, row in agreement.modules.iterrows()
    )
    return EstimatorCheckView(
        ratio=sensitivity.ratio,
        tokens=sensitivity.tokens,
        modules=modules,
        rho=agreement.rho,
        ceiling=agreement.ceiling,
        misjudged=tuple(Misjudged(**vars(module)) for module in agreement.misjudged),
        measured_on=lazy_gettext("{tokens:,} held-out tokens{rounding}", tokens=sensitivity.tokens, rounding=rounding),
        source=source,
    )
