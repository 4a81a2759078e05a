"""Measures the steps of a published page, as a job of the page or for the command line."""

import shlex
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import TypeVar

from intraslice.core import checks
from intraslice.core.config import SliceConfig
from intraslice.core.errors import NumericalError, UserError
from intraslice.evaluation.perplexity import Losses
from intraslice.records import Recipe

from .. import limits
from ..activations.measure import ShiftViews
from ..compare.answers import write_answers
from ..compare.measure import FactsCache, score_tokens
from ..compare.models import Columns
from ..compare.views import COLUMNS, FactsView, Question
from ..i18n.language import lazy_gettext
from ..jobs.job import Job, Urgency
from ..jobs.status import Status
from ..spectra.measure import SpectraViews
from ..state.caches import BoundedCache
from ..state.calibrations import Calibrated
from ..state.choices import FACT_LANGUAGES
from ..state.plan_views import map_view
from ..state.request import CalibrationKey, Request, parse
from ..state.session import Session
from ..state.settings import MAX_PERCENT, Settings
from ..state.views import Reading
from ..sweep.views import SweepPoint, SweepView
from ..ui import formatting
from . import files
from .views import PROMPTS, Choice, Published, Step

MAX_STEPS, MAX_PROMPTS = 61, 8
Result = TypeVar("Result")


class Publisher:
    """Measures the steps of published pages with the tabs' caches, and caches them: a stopped page continues."""

    def __init__(self, spectra: SpectraViews, shifts: ShiftViews, facts: FactsCache) -> None:
        self._spectra, self._shifts, self._facts, self._columns = spectra, shifts, facts, facts.columns
        self._session = self._columns.session
        self._steps: BoundedCache[tuple[CalibrationKey, SliceConfig, Choice], Step] = BoundedCache(100)

    def publish(self, job: Job, request: Request, choice: Choice) -> Published:
        """Measure all of a page that opens at this setting, less manual ratios. Raises UserError before any work."""
        request, choice = request.with_settings(locked=""), _validated(choice)
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
        public_recipe = without_folders(recipe)
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
            sweep=_sweep(request, steps),
            command=command(public_recipe, self._session.device, ["--out", f"{name}.html"], listed, choice.prompts),
        )

    def _step(self, job: Job, request: Request, choice: Choice) -> Step:
        key = request.calibration, request.slicing, choice._replace(percents=())
        if (cached := self._steps.get(key)) is not None:
            return cached
        session = self._session
        calibrated = session.calibrated(request)
        dense, _ = session.losses(job, request, calibrated)
        plan, cross = session.plan(request), self._cross(job, request, calibrated)
        assert plan is not None  # every calibrated model has one
        shift = None
        if request.slicing.sparsity:
            self._shifts.measure_both(job, request)
            shift = self._shifts.view(request, "publisher")
        questions = [Question(prompt, choice.tokens) for prompt in choice.prompts]
        answers = [write_answers(job, self._columns, request, question) for question in questions]
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
            costs=self._columns.cached_costs(request),
            cross=None if cross is None else Reading(*cross.perplexity(), cross.done, cross.total),
            cross_ratio=None if cross is None else Reading(*cross.ratio(dense), cross.done, cross.total),
            spectra=tuple(spectra),
            shift=shift,
            answers=tuple(answers),
            facts=self._answered(job, request),
            passage=score_tokens(job, self._columns, request, choice.passage) if choice.passage else None,
        )
        return self._steps.put(key, step)

    def _answered(self, job: Job, request: Request) -> FactsView:
        """The answers to the short questions: those stored of this percentage, else measured now."""
        view = self._facts.view(request, FACT_LANGUAGES[0])
        if view is None or not view.is_exact or len(view.columns) < len(COLUMNS):
            view = self._facts.complete(job, request, None, FACT_LANGUAGES[0])
        assert view is not None  # there is a dense model
        return view

    def _cross(self, job: Job, request: Request, calibrated: Calibrated) -> Losses | None:
        """The cross-module model's losses, None if it cannot reach the sparsity; the costs then have the reason."""
        try:
            self._columns.model(job, request, "crossmodule")
        except (UserError, NumericalError):
            return None
        return self._session.readings.losses(job, request.slice_key("crossmodule"), calibrated)


def _validated(choice: Choice) -> Choice:
    """The choice with sorted, unique steps. Raises UserError if it is invalid."""
    percents = sorted({checks.number("sparsity", percent, 0, MAX_PERCENT) for percent in choice.percents})
    if not 2 <= len(percents) <= MAX_STEPS:
        raise UserError("The slider must have 2 to {limit} steps, got {count}.", count=len(percents), limit=MAX_STEPS)
    if not 1 <= len(choice.prompts) <= MAX_PROMPTS:
        raise UserError(
            "There must be 1 to {limit} prompts, got {count}.", count=len(choice.prompts), limit=MAX_PROMPTS
        )
    for prompt in choice.prompts:
        checks.require_words("a prompt", checks.text("Prompt", prompt, limits.PROMPT.value))
    tokens = checks.integer("Maximum new tokens", choice.tokens, 1, limits.NEW_TOKENS.value)
    return Choice(tuple(percents), tuple(choice.prompts), tokens, choice.passage)


def without_folders(recipe: Recipe) -> Recipe:
    """The recipe with local paths reduced to their names: the published file must not disclose folders."""
    names = recipe.model, recipe.calibration.text
    model, text = (Path(name).name if Path(name).exists() else name for name in names)
    calibration, evaluation = replace(recipe.calibration, text=text), replace(recipe.evaluation, text=text)
    return replace(recipe, model=model, calibration=calibration, evaluation=evaluation)


def _sweep(request: Request, steps: Sequence[Step]) -> SweepView:
    """The perplexities of both methods at all steps but 0 %."""
    points = []
    for method, estimator in (("intraslice", request.slicing.estimator), ("crossmodule", "")):
        for step in steps:
            cost, note = step.costs.columns.get(method), step.costs.problems.get(method, "")
            removed, parameters, perplexity = (
                (cost.removed, cost.parameters, cost.perplexity) if cost else (None, None, None)
            )
            if step.percent:
                target = step.percent / 100
                points.append(SweepPoint(method, estimator, target, removed, parameters, perplexity, note=note))
    perplexities = steps[0].perplexities
    return SweepView(perplexities.values[0], tuple(points), len(points), perplexities.protocol)


def command(
    recipe: Recipe, device: str, place: Sequence[str], percents: Sequence[float], prompts: Sequence[str]
) -> str:
    """The shell command for a page or a site, which the option `place` names; `percents` may be the default: empty."""
    options = [*place]
    options += ["--sparsities", *(f"{percent / 100:g}" for percent in percents)] if percents else []
    options += [] if tuple(prompts) == PROMPTS else ["--prompts", *prompts]
    return shlex.join(["python", "-m", "intraslice", *files.command_arguments(recipe, device, "publish", *options)])


def request_from_recipe(recipe: Recipe) -> Request:
    """The request of a recipe, as far as the page has controls for it. Raises UserError for invalid values."""
    values = asdict(recipe.slicing) | asdict(recipe.calibration) | {"model": recipe.model, "dtype": recipe.dtype}
    values |= {name: round(100 * values[name], 9) for name in ("sparsity", "cap")} | {"locked": ""}
    return parse(Settings(**{name: values[name] for name in Settings._fields if name in values}))


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
