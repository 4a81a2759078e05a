"""Ratio search: the library's search at the chosen sparsity, with a view after every generation."""

from __future__ import annotations

from collections.abc import Iterator

from intraslice.core.config import MODULE_KINDS, SliceConfig
from intraslice.core.errors import UserError
from intraslice.core.progress import Progress
from intraslice.planning.ratios import Ratios
from intraslice.search.evolution import SearchConfig
from intraslice.search.ratio_search import SearchProgress, search_bytes, search_ratios, search_windows

from ..i18n.language import lazy_gettext
from ..jobs.job import Job, Urgency
from ..jobs.jobs import job_progress
from ..jobs.status import Status
from ..ratios.ratio_files import locked_text
from ..state.caches import BoundedCache
from ..state.request import CalibrationKey, Request
from ..state.session import Session
from .views import RatioSearchView

JOB = "search"  # the job's kind, which is also the endpoint's name
NOTHING = lazy_gettext("At 0% nothing is removed, so there are no ratios to search for. Move the slider first.")


class RatioSearches:
    """Searches by calibration, sparsity, estimator and cap; other settings do not matter to them."""

    def __init__(self, session: Session, search: SearchConfig | None = None) -> None:
        self._session, self._search = session, search or SearchConfig()
        self._views: BoundedCache[tuple[CalibrationKey, SliceConfig], RatioSearchView] = BoundedCache(100)

    def cached(self, request: Request) -> RatioSearchView | None:
        """What a search found so far."""
        return self._views.get((request.calibration, _config_of(request)))

    def locked(self, request: Request) -> str:
        """The ratios that a search found so far, as locked ratios. Raises UserError if there are none.

        The MLP that loses least stays unlocked: it makes up what the found size differs from the target.
        """
        view = self.cached(request)
        if view is None:
            raise UserError("No ratio search has run for this setting yet. Press “Search for better ratios” first.")
        unlocked = min(range(len(view.found)), key=lambda layer: view.found[layer][1]), "mlp"
        return locked_text(
            (layer, module, ratio)
            for layer, ratios in enumerate(view.found)
            for module, ratio in zip(MODULE_KINDS, ratios, strict=True)
            if (layer, module) != unlocked
        )

    def measure(self, request: Request, client: str) -> Iterator[Status | RatioSearchView]:
        """Search; yields a view after every generation. A search that was stopped continues where it was."""
        config, key = _config_of(request), request.calibration

        def work(job: Job) -> None:
            if not config.sparsity:
                raise UserError(NOTHING)
            found = self.cached(request)
            if found is None or not found.is_complete:
                job.share((JOB, key, config), search)
            else:
                job.emit(found)

        def search(job: Job) -> None:
            calibrated = self._session.calibrations.calibrate(job, key)
            loaded, stats, sequences = calibrated.loaded, calibrated.stats, len(calibrated.tokens)
            report = job_progress(job, lazy_gettext("Searching for better ratios:"))
            shown: SearchProgress | None = None

            def progress(event: Progress) -> None:
                nonlocal shown
                report(event)
                if event.partial is None or (state := event.partial()) == shown:
                    return
                shown = state
                job.emit(self._put(key, config, self._view(state)))

            with self._session.slice_memory.reserved(job, search_bytes(loaded.model), calibrated):
                windows = search_windows(
                    loaded,
                    calibrated.training[sequences : 2 * sequences],
                    2 * sequences,
                    progress=job_progress(
                        job, lazy_gettext("Sampling text for the ratio search from the dense model:")
                    ),
                )
                result = search_ratios(loaded, stats, windows, config, search=self._search, progress=progress)
            assert shown is not None  # the search reports its start
            found = RatioSearchView(
                _by_layer(shown.start), _by_layer(result.ratios), result.passes, self._search.passes, result.changes,
                result.before, result.after,
            )  # fmt: skip
            job.emit(self._put(key, config, found))

        yield from self._session.jobs.run(client, JOB, work, urgency=Urgency.BACKGROUND)

    def _put(self, key: CalibrationKey, config: SliceConfig, view: RatioSearchView) -> RatioSearchView:
        return self._views.put((key, config), view)

    def _view(self, state: SearchProgress) -> RatioSearchView:
        both = _by_layer(state.start), _by_layer(state.ratios)
        return RatioSearchView(*both, state.passes, self._search.passes, state.changes)


def _config_of(request: Request) -> SliceConfig:
    config = request.slicing
    return SliceConfig(config.sparsity, config.estimator, cap=config.cap, order="one-shot")


def _by_layer(ratios: Ratios) -> tuple[tuple[float, float], ...]:
    layers = 1 + max(layer for layer, _ in ratios)
    return tuple((ratios[layer, "attention"], ratios[layer, "mlp"]) for layer in range(layers))
