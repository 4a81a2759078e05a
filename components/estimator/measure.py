"""What the sections of the Estimator tab measure: the estimator check, and the ratio search.

The check slices every module alone and compares the damage on held-out text with the predicted one; that of the default
model is precomputed. The search is the library's at the chosen sparsity, with a view after every generation.
"""

from collections.abc import Iterator

from intraslice.core.config import SliceConfig
from intraslice.core.errors import UserError
from intraslice.core.progress import Progress
from intraslice.diagnostics.sensitivity import Sensitivity, cached_sensitivity, measure_sensitivity
from intraslice.search.evolution import SearchConfig
from intraslice.search.ratio_search import SearchProgress, search_bytes, search_ratios, search_windows

from ..i18n.language import lazy_gettext
from ..jobs.job import Job, Urgency
from ..jobs.jobs import job_progress
from ..jobs.status import Status
from ..state.caches import BoundedCache
from ..state.precomputed import SENSITIVITY
from ..state.request import CalibrationKey, Request
from ..state.session import Session
from .views import EstimatorCheckView, RatioSearchView, estimator_check_view

CHECK_JOB, SEARCH_JOB = "sensitivity", "search"  # the jobs' kinds, which are also the endpoints' names
RATIO = 0.3
NOTHING = lazy_gettext("At 0% nothing is removed, so there are no ratios to search for. Move the slider first.")


class EstimatorCheckCache:
    """Cached measurements, by model and calibration."""

    def __init__(self, session: Session) -> None:
        self.session = session
        self._views: BoundedCache[CalibrationKey, EstimatorCheckView] = BoundedCache(100)

    def cached(self, request: Request) -> EstimatorCheckView | None:
        """The check if all modules are measured, or the precomputed one."""
        key = request.calibration
        if (view := self._views.get(key)) is not None:
            return view
        source = self.session.source(request)
        if source is None:
            return None
        if self.session.is_calibrated(request):
            calibrated = self.session.calibrated(request)
            sensitivity = cached_sensitivity(calibrated.loaded, calibrated.stats, calibrated.windows, RATIO)
            if sensitivity is not None:
                return self._views.put(key, estimator_check_view(sensitivity, source.profile, key.dtype))
        found = self.session.precomputed.find(SENSITIVITY, key, Sensitivity)
        return estimator_check_view(found.value, source.profile, found.entry.dtype, found.source) if found else None

    def measure(self, request: Request, client: str) -> Iterator[Status | EstimatorCheckView]:
        """Measure the missing modules; ends with the view or an error status. Finished modules are cached."""

        def work(job: Job) -> None:
            calibrated = self.session.calibrations.calibrate(job, request.calibration)
            progress = job_progress(job, lazy_gettext("Slicing each module alone:"))
            loaded, stats, windows = calibrated.loaded, calibrated.stats, calibrated.windows
            sensitivity = measure_sensitivity(loaded, stats, windows, RATIO, progress=progress)
            view = estimator_check_view(sensitivity, calibrated.source.profile, request.calibration.dtype)
            job.emit(self._views.put(request.calibration, view))

        yield from self.session.jobs.run(client, CHECK_JOB, work, urgency=Urgency.BACKGROUND)


class RatioSearches:
    """Searches by calibration, sparsity, estimator and cap; other settings do not matter to them."""

    def __init__(self, session: Session, search: SearchConfig | None = None) -> None:
        self.session, self._search = session, search or SearchConfig()
        self._views: BoundedCache[tuple[CalibrationKey, SliceConfig], RatioSearchView] = BoundedCache(100)

    def cached(self, request: Request) -> RatioSearchView | None:
        """What a search found so far."""
        return self._views.get((request.calibration, _config_of(request)))

    def locked(self, request: Request) -> str:
        """The ratios that a search found so far, as locked ratios. Raises UserError if there are none."""
        view = self.cached(request)
        if view is None:
            raise UserError("No ratio search has run for this setting yet. Press “Search for better ratios” first.")
        return view.locked()

    def measure(self, request: Request, client: str) -> Iterator[Status | RatioSearchView]:
        """Search; yields a view after every generation. A search that was stopped continues where it was."""
        config, key = _config_of(request), request.calibration

        def work(job: Job) -> None:
            if not config.sparsity:
                raise UserError(NOTHING)
            found = self.cached(request)
            if found is None or not found.is_complete:
                job.share((SEARCH_JOB, key, config), search)
            else:
                job.emit(found)

        def search(job: Job) -> None:
            calibrated = self.session.calibrations.calibrate(job, key)
            loaded, stats, sequences = calibrated.loaded, calibrated.stats, key.config.sequences
            report = job_progress(job, lazy_gettext("Searching for better ratios:"))
            shown: SearchProgress | None = None

            def progress(event: Progress) -> None:
                nonlocal shown
                report(event)
                if event.partial is None or (state := event.partial()) == shown:
                    return
                shown = state
                job.emit(self._views.put((key, config), RatioSearchView(state.start, state, self._search.passes)))

            with self.session.slice_memory.reserved(job, search_bytes(loaded.model), calibrated):
                windows = search_windows(
                    loaded,
                    calibrated.training[sequences : 2 * sequences],
                    2 * sequences,
                    skip=key.config.samples,
                    progress=job_progress(
                        job, lazy_gettext("Sampling text for the ratio search from the dense model:")
                    ),
                )
                result = search_ratios(loaded, stats, windows, config, search=self._search, progress=progress)
            assert shown is not None  # the search reports its start
            job.emit(self._views.put((key, config), RatioSearchView(shown.start, result, self._search.passes)))

        yield from self.session.jobs.run(client, SEARCH_JOB, work, urgency=Urgency.BACKGROUND)


def _config_of(request: Request) -> SliceConfig:
    config = request.slicing
    return SliceConfig(config.sparsity, config.estimator, cap=config.cap, order="one-shot")
