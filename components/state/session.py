"""The library as all tabs use it: loaded models, bounded caches, and jobs that can be stopped.

Cache keys are what a value depends on (model, text, settings), never the client, and cached values are read-only. So
clients share work and cannot change each other's slices. All heavy work runs in jobs (`components/jobs/`).
"""

from collections.abc import Iterator
from dataclasses import replace
from functools import cache, cached_property, lru_cache, partial
from typing import Any

import torch
from transformers import PreTrainedModel

from intraslice.check import ModelCheck, check_model
from intraslice.core.config import NO_RECOVERY, CalibrationConfig
from intraslice.core.errors import UserError
from intraslice.core.progress import Progress
from intraslice.core.threads import set_threads
from intraslice.evaluation.perplexity import Losses
from intraslice.methods.crossmodule import find_axes
from intraslice.methods.registry import calibration_for, plan_by, slice_by, slice_bytes
from intraslice.planning.ratios import SlicePlan, make_plan
from intraslice.pretrained.memory import available_bytes, calibration_bytes, require_memory
from intraslice.pretrained.precision import AUTO, choose_device
from intraslice.size_target import parse_size, plan_within
from intraslice.slicing.driver import slice_model
from intraslice.token_windows import describe

from ..i18n.language import LazyString, lazy_gettext
from ..jobs.job import Job, Scheduler, Urgency
from ..jobs.jobs import Jobs, job_progress
from ..jobs.status import Status
from .caches import WAIT_SECONDS, CachedEntry, Caches, JobMemory
from .calibrations import SAMPLING, Calibrated, Calibrations
from .choices import ESTIMATORS, METHODS, TEXTS, describe_samples
from .estimator_choice import choose, note_stored
from .plan_views import Plans, Source, Value, convergence_view, importance_curves
from .precomputed import Precomputed
from .readings import Readings
from .request import DENSE, Request, SliceKey, default_precision, parse
from .settings import CONTROLS, Settings, model_name
from .views import ConvergenceView, ImportanceCurve, Perplexities, PlanView, View

RECOVERY_STAGES = {  # the library's stages, and their texts in the status
    "samples": SAMPLING,
    "dense states": lazy_gettext("Computing the dense model's hidden states for training, sequence"),
    "distill": lazy_gettext("Training the sliced model, step"),
}
NOT_CALIBRATED = lazy_gettext("This model has not been calibrated on this text yet. Press “Load and calibrate”.")


class Session:
    """The state of the whole app. A `client` is an open page or a program; `precomputed` is under all caches."""

    texts = TEXTS

    def __init__(
        self, device: str = AUTO, evaluation_tokens: int = 2560, precomputed: Precomputed | None = None
    ) -> None:
        self.device = choose_device(device)
        self.evaluation_tokens = evaluation_tokens
        self.jobs = Jobs(Scheduler(initialise=partial(set_threads, torch.get_num_threads())))
        self._caches = Caches(available_bytes(self.device))
        self.precomputed = precomputed or Precomputed()
        note_stored(self.precomputed)
        self.calibrations = Calibrations(self._caches, self.device, evaluation_tokens, self.precomputed)
        self.slice_memory = JobMemory(self._caches, self.device, max_wait=WAIT_SECONDS)
        self.plans = Plans()
        self._check = lru_cache(100)(check_model)
        self.readings = Readings(self._caches, self._sliced, self.precomputed)

    @cached_property
    def opening(self) -> Request:
        """What the page opens with: the default settings, with the estimator that was chosen for them."""
        first = parse(Settings())
        choice = first.calibration.choice
        return first.with_settings(estimator=choice.name) if choice else first

    # Answers in milliseconds

    def plan(self, request: Request) -> PlanView | None:
        """The plan of a setting with the other estimators' ratios, or None if there is no source for it yet."""
        source = self.source(request)
        return None if source is None else self.plans.view(source, request.slicing)

    def view(self, request: Request, client: str, pinned: Request | None = None) -> View:
        """What the page shows a client of a setting outside of the tabs, compared with a pinned one."""
        # First: what has the greatest number is drawn from all that has happened before.
        status = self.jobs.status(client, partial(self.ready, request))
        return replace(
            self._setting(request),
            pinned=None if pinned is None else self._setting(pinned),
            is_measuring=self.jobs.is_running(client, "measure", **_measured(request)),
            is_current=self.jobs.view_of(client, "request", request) == request,
            status=status,
        )

    def _setting(self, request: Request) -> View:
        try:
            return View(request, self.plan(request), self.perplexities(request))
        except ValueError as problem:  # the model does not allow this setting
            return View(request, problem=problem)

    def importances(self, request: Request, layer: int) -> dict[str, ImportanceCurve]:
        """Sorted importances of a layer, by module. Raises UserError as `slice_plan` does."""
        source = _required(self.source(request))
        return importance_curves(source, self.plans.plan(source, request.slicing), layer)

    def slice_plan(self, request: Request) -> SlicePlan:
        """What is removed from each layer. Raises UserError if there is no source or the target is out of reach."""
        return self.plans.plan(_required(self.source(request)), request.slicing)

    def convergence(self, request: Request) -> ConvergenceView | None:
        """How ratios converged with the calibration, or None without earlier ones. Raises UserError as `slice_plan`."""
        key, config = request.calibration, request.slicing
        best = self.calibrations.best(key)
        if best is None:
            return None
        partial_sources = sorted(self.calibrations.partial_sources(key).items())
        earlier = {count: source for count, source in partial_sources if count < best.sequences}
        if ESTIMATORS[config.estimator].importance:  # cached profiles may be older than a user's own estimator
            earlier = {n: source for n, source in earlier.items() if config.estimator in source.profile.estimators}
        plans = {count: self.plans.plan(source, config) for count, source in earlier.items()}
        if not plans:
            return None
        latest = self.plans.plan(best.source, config)
        return convergence_view(plans | {best.sequences: latest}, len(best.tokens))

    def sequences(self, request: Request) -> int:
        """The number of sequences on which the model is calibrated so far."""
        best = self.calibrations.best(request.calibration)
        return best.sequences if best else 0

    def is_calibrated(self, request: Request) -> bool:
        """Whether the model and its whole calibration are in memory."""
        return self.calibrations.whole(request.calibration) is not None

    def is_sliced(self, request: Request) -> bool:
        """Whether the sliced model of these settings is in memory; always true at sparsity 0."""
        sliced = self._caches.slices.get(request.slice_key("intraslice"))
        return request.slicing.sparsity == 0 or (sliced is not None and sliced.sequences == self.sequences(request))

    def perplexities(self, request: Request) -> Perplexities:
        """The best perplexities of this setting's slice, or one interpolated between those of others."""
        best = self.calibrations.best(request.calibration)
        return self.readings.perplexities(request, best, self.plans.simplest(self.source(request), request.slicing))

    def check(self, model: str) -> ModelCheck:
        """What slicing a model takes; all but the free memory is kept. Raises UserError where that is impossible."""
        name, dtype = model_name(model), getattr(torch, default_precision())
        with self.calibrations.bounded_hub_cache(name):
            found = self._check(name, CalibrationConfig(), dtype, self.device)
        return replace(found, available_bytes=require_memory(name, dtype, self.device).available)

    # Jobs

    def prepare(self, request: Request, client: str) -> Iterator[Status]:
        """Load and calibrate, unless both are cached; ends with a ready or an error status."""

        def work(job: Job) -> None:
            with self.calibrations.holding(job, request.calibration):
                self.calibrations.calibrate(job, request.calibration, whole=False)
                job.urgency = Urgency.BACKGROUND  # there are enough sequences to slice from
                calibrated = self.calibrations.calibrate(job, request.calibration)

            def find(job: Job) -> None:
                find_axes(calibrated.loaded.model, calibrated.stats, progress=lambda _: job.checkpoint())

            # The cross-module axes are needed later; no client waits for this job.
            axes = ("axes", request.calibration)
            self.jobs.scheduler.start("nobody", lambda job: job.share(axes, find), Urgency.BACKGROUND)

        yield from self.jobs.run(client, "prepare", work, ready=partial(self.ready, request))

    def measure(self, request: Request, client: str) -> Iterator[Status]:
        """Slice, then measure dense and sliced perplexity; ends with a ready or an error status.

        Measures again whenever the running calibration includes more sequences.
        """
        work = partial(self.measure_perplexities, request=request, whole=not request.is_live)
        yield from self.jobs.run(client, "measure", work, ready=partial(self.ready, request), **_measured(request))

    def prefetch(self, request: Request, client: str) -> None:
        """Start measuring before the slider is released, once it has not moved for a moment; the next move stops it."""
        can_measure = request.is_live and self.is_calibrated(request)
        if can_measure and self.perplexities(request).source.kind == "so far":
            work = partial(self.measure_perplexities, request=request)
            self.jobs.prefetch(client, work, request=request)

    def fit_size(self, request: Request, size: str, context: int, client: str) -> Iterator[Status | float]:
        """The smallest sparsity, in per cent, whose weights and KV cache of `context` tokens fit into a size.

        The size is as `parse_size` reads it; without a type, the weights are stored in the request's precision.
        """
        highest = min((CONTROLS["sparsity"].slider or (0, 0))[1] / 100, request.slicing.cap)

        def work(job: Job) -> None:
            target = parse_size(size, context)
            target = target._replace(kind=target.kind or request.calibration.dtype)
            calibrated = self.calibrations.calibrate(job, request.calibration)

            def plan_at(sparsity: float) -> SlicePlan:
                job.checkpoint()  # others run between two plans
                sparsity = round(100 * sparsity, 4) / 100  # as the slider's value is read
                # Not by `plans`: a hundred that no client views would take the places of those that are.
                return make_plan(calibrated.source.profile, replace(request.slicing, sparsity=sparsity))

            plan = plan_within(target, calibrated.loaded, plan_at, highest)
            job.emit(round(100 * plan.config.sparsity, 4))

        yield from self.jobs.run(client, "fit_size", work, ready=partial(self.ready, request))

    def ready(self, request: Request) -> Status:
        """The last status of jobs: the loaded model and its calibration."""
        key = request.calibration
        best = self.calibrations.best(key)
        if best is None:  # the dense model needs no calibration
            return Status(lazy_gettext("Ready"), "ready")
        config = key.config
        values = {"source": best.loaded.source, "dtype": key.dtype, "length": config.length}
        values |= {"sequences": best.sequences, "all": len(best.tokens), "text": describe(config.text)}
        words = "{source}, {dtype}. Calibrated so far on {sequences} of {all} sequences of {length} tokens: {text}"
        if best.is_whole:
            values |= {"sequences": config.sequences, "sampled": describe_samples(config)}
            words = "{source}, {dtype}. Calibrated on {sequences} x {length} tokens: {text}{sampled}"
        return Status(lazy_gettext(words, **values), "ready")

    def speed_protocol(self, **config: int) -> LazyString:
        """How speeds are measured, by the fields of a `SpeedConfig`."""
        count = torch.get_num_threads() if self.device == "cpu" else 0
        return lazy_gettext(
            "Speed at batch size {batch}{threads}, the models in turn, medians of {repeats} runs: prefill of {prompt} "
            "tokens, then decoding of {new}, one at a time. Other machines give other numbers.",
            threads=lazy_gettext(" (CPU threads: {count})", count=count) if count else "",
            **config,
        )

    def calibrated(self, request: Request) -> Calibrated:
        """The model and its whole calibration. Raises UserError before that is in memory."""
        return _required(self.calibrations.whole(request.calibration))

    def source(self, request: Request) -> Source | None:
        """What plans are computed from: the whole calibration, a precomputed one, or the calibration so far."""
        best = self.calibrations.best(request.calibration)
        if best is not None and best.is_whole:
            return best.source
        return self.precomputed.source(request.calibration) or (None if best is None else best.source)

    def keep(self, request: Request) -> None:
        """Keep what is cached of its model, calibration and slice in memory although no client uses them."""
        self._caches.models.keep(request.calibration[:2])
        self._caches.calibrations.keep(request.calibration)
        self._caches.slices.keep(request.slice_key("intraslice"))

    # Work inside a job

    def slice(self, job: Job, request: Request, method: str = "intraslice", whole: bool = True) -> PreTrainedModel:
        """The sliced model, at sparsity 0 the dense one; without `whole` from the sequences calibrated so far."""
        calibrated = self.calibrations.calibrate(job, request.calibration, whole)
        return self._sliced(job, request.slice_key(method), calibrated)

    def measure_perplexities(self, job: Job, request: Request, whole: bool = True) -> None:
        """The work of `measure`; with `whole`, or if it was measured before, only from the whole calibration."""
        sequences, calibrated, whole = 0, None, whole or self.perplexities(request).source.kind == "before"
        with self.calibrations.holding(job, request.calibration):
            while calibrated is None or not calibrated.is_whole:
                calibrated = self.calibrations.calibrate(job, request.calibration, whole, more_than=sequences)
                if calibrated.is_whole and request.is_undecided:
                    choose(job, calibrated, request.calibration, self.slice_memory)
                self.losses(job, request.now(), calibrated)
                sequences = calibrated.sequences
                if not calibrated.is_whole:
                    job.urgency = Urgency.BACKGROUND

    def losses(self, job: Job, request: Request, calibrated: Calibrated) -> list[Losses]:
        """The losses of the dense and the sliced model, measured now or cached."""
        return [self.readings.losses(job, request.slice_key(method), calibrated) for method in (DENSE, "intraslice")]

    def _sliced(self, job: Job, key: SliceKey, calibrated: Calibrated) -> PreTrainedModel:
        loaded, method = calibrated.loaded, key.method
        if key.config.sparsity == 0:
            return loaded.model

        def make(job: Job) -> PreTrainedModel:
            stats, tokens = calibrated.stats, calibrated.tokens
            if METHODS[method].targets not in (None, stats.targets):
                (sequences, length), precision = tokens.shape, loaded.model.dtype
                needed = calibration_bytes(loaded.model.config, sequences, length, precision)
                on_text = job_progress(job, lazy_gettext("Calibrating on the text's own next tokens, sequence"))
                with self.slice_memory.reserved(job, needed, calibrated):
                    stats = calibration_for(method, loaded, stats, tokens, progress=on_text)
            plan = plan_by(method, loaded.model, stats, key.config)
            named = lazy_gettext("Slicing ({method}), layer", method=method)
            slicing_text = lazy_gettext("Slicing, layer") if method == "intraslice" else named
            training = calibrated.training
            report = cache(partial(job_progress, job, about=key))  # by text, since each times from its first event

            def progress(event: Progress) -> None:
                report(RECOVERY_STAGES.get(event.stage, slicing_text))(event)

            with self.slice_memory.reserved(job, slice_bytes(loaded.model, plan, tokens.shape[1]), calibrated):
                if method == "intraslice" and isinstance(plan, SlicePlan) and plan.recovery == NO_RECOVERY:
                    kept = calibrated.slice_cache  # since the slider slices often
                    sliced = slice_model(loaded.model, plan, stats, tokens, cache=kept, progress=progress)
                else:
                    sliced = slice_by(method, loaded.model, plan, stats, tokens, training, progress=progress)
            self._caches.slices.put(key, CachedEntry(sliced, calibrated.sequences))
            return sliced

        cached = self._caches.slices.get(key)
        if cached is not None and cached.sequences == calibrated.sequences:
            return cached.value
        return job.share(("slice", key, calibrated.sequences), make)


def _required(value: Value | None) -> Value:
    if value is None:
        raise UserError(NOT_CALIBRATED)
    return value


def _measured(request: Request) -> dict[str, Any]:
    """The view that the job `measure` is for: a live one is cancelled when the request changes, others never are."""
    return {"request" if request.is_live else "measured": request}
