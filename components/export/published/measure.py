"""Measures what a published page shows, step by step of its slider, as a job of the page or for the command line."""

from __future__ import annotations

import shlex
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from components.activations.measure import ShiftViews
from components.compare.answers import write_answers
from components.compare.models import Columns
from components.compare.views import Question
from components.export import files
from components.export.published.views import PROMPTS, Choice, Published, Step
from components.i18n.language import lazy_gettext
from components.jobs import limits
from components.jobs.job import Job
from components.jobs.status import Status
from components.jobs.turns import Urgency
from components.spectra.measure import SpectraViews
from components.state.caches import BoundedCache
from components.state.calibrations import Calibrated
from components.state.request import DENSE, Request, SliceKey, parse
from components.state.session import Session
from components.state.settings import Settings
from components.state.views import Reading
from components.sweep.views import SweepPoint, SweepView
from components.ui import formatting
from intraslice.core.errors import NumericalError, UserError
from intraslice.evaluation.perplexity import Losses
from intraslice.reporting import Recipe

__all__ = ["PROMPTS", "Choice", "Publisher", "request_of", "to_the_end"]

MAX_STEPS, MAX_PROMPTS = 61, 8


class Publisher:
    """Measures the steps of published pages, and keeps them: one that was stopped goes on where it was.

    What the tabs Spectra, Activations and Compare have measured already is not measured again.
    """

    def __init__(self, spectra: SpectraViews, shifts: ShiftViews, columns: Columns) -> None:
        self._session, self._spectra, self._shifts, self._columns = columns.session, spectra, shifts, columns
        self._steps: BoundedCache[tuple[SliceKey, Choice], Step] = BoundedCache(100, seconds=30)

    def publish(self, job: Job, request: Request, choice: Choice) -> Published:
        """Measure everything on a published page that opens at these settings; ratios given by hand are left out.

        Raises UserError, before any work, for a choice or for settings out of range.
        """
        request, choice = request.with_settings(locked=""), _checked(choice)
        at = [request.with_settings(sparsity=percent) for percent in choice.percents]
        job.urgency = Urgency.BACKGROUND
        calibrated = self._session.calibrations.calibrate(job, request.calibration)
        for setting in at:  # what cannot be reached is told now, not after minutes
            self._session.slice_plan(setting)
            job.checkpoint()
        for layer in range(len(calibrated.stats.layers)):
            self._spectra.complete(request, layer)
            job.checkpoint()
        steps, start = [], time.monotonic()
        for done, (percent, setting) in enumerate(zip(choice.percents, at, strict=True)):
            words = lazy_gettext("Page: {sparsity:g} % removed; steps", sparsity=percent)
            left = (time.monotonic() - start) / done * (len(at) - done) if done else None
            status = Status(words, "busy", done, len(at), left)
            job.emit(status)
            with job.emitting_only(status):
                steps.append(self._step(job, setting, choice))
        recipe = request.recipe(self._session.evaluation_tokens)
        told = _without_folders(recipe)
        source = calibrated.loaded.source.replace(recipe.model, told.model)
        distances = [abs(percent - request.settings.sparsity) for percent in choice.percents]
        return Published(
            name=files.model_label(told.model),
            source=f"{source}, {calibrated.loaded.model.dtype}".replace("torch.", ""),
            choice=choice,
            first=distances.index(min(distances)),
            steps=tuple(steps),
            sweep=_sweep(request, steps),
            command=command(told, self._session.device, choice),
        )

    def _step(self, job: Job, request: Request, choice: Choice) -> Step:
        key = request.slice_key("intraslice"), choice._replace(percents=())
        if (kept := self._steps.get(key)) is not None:
            return kept
        session = self._session
        calibrated = session.calibrated(request)
        dense = session.readings.losses(job, request.slice_key(DENSE), calibrated)
        if request.slicing.sparsity:
            session.readings.losses(job, request.slice_key("intraslice"), calibrated)
        plan, cross = session.plan(request), self._cross(job, request, calibrated)
        assert plan is not None  # as of every model that is calibrated
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
            perplexities=session.perplexities(request),
            costs=self._columns.known(request),
            cross=None if cross is None else Reading(*cross.perplexity(), cross.done, cross.total),
            cross_ratio=None if cross is None else Reading(*cross.ratio(dense), cross.done, cross.total),
            spectra=tuple(spectra),
            shift=shift,
            answers=tuple(answers),
        )
        return self._steps.put(key, step)

    def _cross(self, job: Job, request: Request, calibrated: Calibrated) -> Losses | None:
        """The cross-module model's losses, None where it cannot remove as much: the costs say so in words."""
        try:
            self._columns.model(job, request, "crossmodule")
        except (UserError, NumericalError):
            return None
        method = "crossmodule" if request.slicing.sparsity else DENSE
        return self._session.readings.losses(job, request.slice_key(method), calibrated)


def _checked(choice: Choice) -> Choice:
    """The choice with its steps in order, each once. Raises UserError for what is none."""
    percents = sorted({float(limits.number("sparsity", percent, 0, 80)) for percent in choice.percents})
    if not 2 <= len(percents) <= MAX_STEPS:
        raise UserError(
            lazy_gettext("The slider must have 2 to {limit} steps, got {count}.", count=len(percents), limit=MAX_STEPS)
        )
    if not 1 <= len(choice.prompts) <= MAX_PROMPTS:
        raise UserError(
            lazy_gettext(
                "There must be 1 to {limit} prompts, got {count}.", count=len(choice.prompts), limit=MAX_PROMPTS
            )
        )
    for prompt in choice.prompts:
        if not limits.words(lazy_gettext("the prompt"), prompt, limits.PROMPT.value).strip():
            raise UserError(lazy_gettext("A prompt is empty. Enter some text for each."))
    tokens = limits.whole("tokens", choice.tokens, 1, limits.NEW_TOKENS.value)
    return Choice(tuple(percents), tuple(choice.prompts), tokens)


def _without_folders(recipe: Recipe) -> Recipe:
    """With what lies on this machine by its name alone: the file goes out into the world."""
    names = recipe.model, recipe.calibration.text
    model, text = (Path(name).name if Path(name).exists() else name for name in names)
    calibration, evaluation = replace(recipe.calibration, text=text), replace(recipe.evaluation, text=text)
    return replace(recipe, model=model, calibration=calibration, evaluation=evaluation)


def _sweep(request: Request, steps: list[Step]) -> SweepView:
    points = []
    for step in steps:
        if step.percent == 0:
            continue
        for method, estimator in (("intraslice", request.slicing.estimator), ("crossmodule", "")):
            asked, cost = step.percent / 100, step.costs.columns.get(method)
            removed, parameters, perplexity = (
                (cost.removed, cost.parameters, cost.perplexity) if cost else (None, None, None)
            )
            note = step.costs.problems.get(method, "")
            points.append(SweepPoint(method, estimator, asked, removed, parameters, perplexity, note=note))
    points.sort(key=lambda point: point.method != "intraslice")
    measured = steps[0].perplexities
    return SweepView(measured.dense, tuple(points), len(points), measured.protocol)


def command(recipe: Recipe, device: str, choice: Choice) -> str:
    """The line for a shell that measures the same and writes the file."""
    words = ["--out", f"{files.model_label(recipe.model)}.html"]
    if tuple(choice.percents) != Choice().percents:
        words += ["--sparsities", *(f"{percent / 100:g}" for percent in choice.percents)]
    if tuple(choice.prompts) != PROMPTS:
        words += ["--prompts", *choice.prompts]
    return shlex.join(["python", "-m", "intraslice", *files.command_words(recipe, device, "publish", *words)])


def request_of(wanted: Recipe) -> Request:
    """The page set as a recipe has it, as far as there are controls for that. Raises UserError for what is refused."""
    slicing, calibration = wanted.slicing, wanted.calibration
    settings = Settings(
        model=wanted.model,
        text=calibration.text,
        sequences=calibration.sequences,
        length=calibration.length,
        seed=calibration.seed,
        sparsity=round(100 * slicing.sparsity, 9),
        estimator=slicing.estimator,
        bias=slicing.bias,
        cap=round(100 * slicing.cap, 9),
        order=slicing.order,
        iterative=slicing.iterative,
        shapes=slicing.shapes,
        recovery=slicing.recovery,
        dtype=wanted.dtype,
    )
    return parse(settings)


def to_the_end(session: Session, request: Request, choice: Choice, tell: Callable[[str], object]) -> Published:
    """Measure everything now, and tell how far it got. Raises UserError for whatever goes wrong."""
    results, told = [], ""
    publisher = Publisher(SpectraViews(session), ShiftViews(session), Columns(session))

    def work(job: Job) -> None:
        results.append(publisher.publish(job, request, choice))

    for event in session.jobs.run("command line", "publish", work):
        line = formatting.status_words(event)
        if event.kind == "error":
            raise UserError(line)
        if line != told:
            tell(line)
        told = line
    return results[0]
