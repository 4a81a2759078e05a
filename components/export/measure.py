"""Measures the steps of a published page, as a job of the page or for the command line."""

import time
from collections.abc import Callable
from typing import TypeVar

from intraslice.core.errors import UserError

from ..activations.measure import ShiftViews
from ..compare.measure import FactsCache, measure_all
from ..compare.models import Columns
from ..i18n.language import lazy_gettext
from ..jobs.job import Job, Urgency
from ..jobs.status import Status
from ..spectra.measure import SpectraViews
from ..state.caches import BoundedCache
from ..state.plan_views import map_view
from ..state.request import Request, SliceKey
from ..state.session import Session
from ..ui import formatting
from . import files
from .views import Choice, Published, Step

Result = TypeVar("Result")


class Publisher:
    """Measures the steps of published pages with the tabs' caches, and caches them: a stopped page continues."""

    def __init__(self, spectra: SpectraViews, shifts: ShiftViews, facts: FactsCache) -> None:
        self._spectra, self._shifts, self._facts, self._session = spectra, shifts, facts, facts.columns.session
        self._steps: BoundedCache[tuple[SliceKey, Choice], Step] = BoundedCache(100)

    def publish(self, job: Job, request: Request, choice: Choice) -> Published:
        """Measure all of a page that opens at this setting, less manual ratios. Raises UserError before any work."""
        request, choice = request.with_settings(locked=""), choice.validated()
        requests = [request.with_settings(sparsity=percent) for percent in choice.percents]
        job.urgency = Urgency.BACKGROUND
        calibrated = self._session.calibrations.calibrate(job, request.calibration)
        for step_request in requests:  # report an unreachable sparsity now, not after minutes
            self._session.slice_plan(step_request)
            job.checkpoint()
        for layer in range(len(calibrated.stats.layers)):
            self._spectra.complete(request, layer)
            job.checkpoint()
        steps, start = [], time.monotonic()
        for done, (percent, step_request) in enumerate(zip(choice.percents, requests, strict=True)):
            label = lazy_gettext("Building the page, {sparsity:g}% removed: step", sparsity=percent)
            left = (time.monotonic() - start) / done * (len(requests) - done) if done else None
            job.only_event = Status(label, "busy", done, len(requests), left)
            job.emit(job.only_event)
            steps.append(self._step(job, step_request, choice))
        job.only_event = None
        recipe = request.recipe(self._session.evaluation_tokens)
        public_recipe = files.without_folders(recipe)
        source = calibrated.loaded.source.replace(recipe.model, public_recipe.model)
        distances = [abs(percent - request.settings.sparsity) for percent in choice.percents]
        name = files.model_label(public_recipe.model)
        listed = () if choice.percents == Choice().percents else choice.percents
        return Published(
            name=name,
            source=f"{source}, {calibrated.loaded.model.dtype}".replace("torch.", ""),
            choice=choice,
            first=distances.index(min(distances)),
            steps=tuple(steps),
            command=files.command(
                public_recipe, self._session.device, ["--out", f"{name}.html"], listed, choice.prompts
            ),
        )

    def _step(self, job: Job, request: Request, choice: Choice) -> Step:
        # unlike `slice_key` with the estimator at 0 %, which a step shows
        key = SliceKey(request.calibration, request.slicing, ""), choice._replace(percents=())
        if (cached := self._steps.get(key)) is not None:
            return cached
        session = self._session
        calibrated = session.calibrated(request)
        compared = measure_all(job, self._facts, request, choice.prompts, choice.tokens, choice.passage)
        plan = session.plan(request)
        assert plan is not None  # every calibrated model has one
        shift = None
        if request.slicing.sparsity:
            self._shifts.measure_both(job, request)
            shift = self._shifts.view(request, "publisher")
        spectra = []
        for layer in range(len(calibrated.stats.layers)):
            if (view := self._spectra.view(request, layer)) is not None:
                spectra.append(view)
            job.checkpoint()
        step = Step(
            percent=request.settings.sparsity,
            plan=plan,
            anatomy=map_view(calibrated.source, session.slice_plan(request)),
            perplexities=session.perplexities(request),
            spectra=tuple(spectra),
            shift=shift,
            **compared,
        )
        return self._steps.put(key, step)


def publish_now(session: Session, request: Request, choice: Choice, report: Callable[[str], object]) -> Published:
    """Measure everything now; calls `report` with every new status line. Raises UserError if it fails."""
    publisher = Publisher(SpectraViews(session), ShiftViews(session), FactsCache(Columns(session)))
    return run_now(session, lambda job: publisher.publish(job, request, choice), report)


def run_now(session: Session, work: Callable[[Job], Result], report: Callable[[str], object]) -> Result:
    """Run `work` as a job, and return its result; calls `report` with every new status line. Raises UserError."""
    results, reported = [], ""
    for event in session.jobs.run("command line", "publish", lambda job: results.append(work(job))):
        line = formatting.status_text(event)
        if event.kind == "error":
            raise UserError(line)
        if line != reported:
            report(line)
        reported = line
    return results[0]
