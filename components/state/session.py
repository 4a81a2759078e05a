"""What every tab's files share of the library: loaded models, bounded caches, and jobs that can be stopped.

Everything is kept by what it was made of (model, text, settings), never by who asked, and is read-only once made, so
people share work and nobody can disturb another's slice. All heavy work is done in jobs (`components/jobs/`).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import partial
from typing import Any

import torch
from transformers import PreTrainedModel

from components.i18n.language import lazy_gettext
from components.jobs import limits
from components.jobs.job import Job
from components.jobs.jobs import Jobs, job_progress
from components.jobs.scheduler import Scheduler
from components.jobs.status import Status
from components.jobs.turns import Urgency
from components.state.caches import CachedEntry, Caches
from components.state.calibrations import Calibrated, Calibrations
from components.state.choices import ESTIMATORS, TEXTS, describe_text
from components.state.plan_views import Plans, Source, importance_curves, settling_view
from components.state.readings import Readings
from components.state.request import DENSE, Request, SliceKey, default_precision, model_name
from components.state.snapshots import plan as snapshot
from components.state.views import ImportanceCurve, Perplexities, PlanView, SettlingView
from intraslice.core.errors import UserError
from intraslice.core.progress import Progress, ProgressCallback
from intraslice.loading import SUGGESTED_MODELS, require_memory
from intraslice.methods.crossmodule_bases import find_axes
from intraslice.methods.registry import plan_by, slice_by
from intraslice.planning.ratios import SlicePlan
from intraslice.pretrained.memory import available_bytes
from intraslice.pretrained.precision import AUTO, choose_device
from intraslice.pretrained.sources import DEFAULT, verify_weights

RECOVERY_STAGES = {  # of the library, and what the status says of them
    "dense states": lazy_gettext("Computing the dense model's logits for training, sequence"),
    "distill": lazy_gettext("Training the sliced model, step"),
}
NOT_CALIBRATED = lazy_gettext("This model is not calibrated on this text yet. Press Load and calibrate.")


class Session:
    """One for the whole app. `client` is any string that tells open pages apart.

    Args:
        evaluation_tokens: how many tokens every perplexity on the page is taken on.
    """

    models = SUGGESTED_MODELS
    texts = TEXTS

    def __init__(self, device: str = AUTO, evaluation_tokens: int = 2560) -> None:
        if limits.hosted():
            verify_weights(DEFAULT)
        self.device = choose_device(device)
        self.evaluation_tokens = evaluation_tokens
        self.jobs = Jobs(Scheduler(initialise=partial(torch.set_num_threads, torch.get_num_threads())))
        self._caches = Caches(available_bytes(self.device))
        self.calibrations = Calibrations(self._caches, self.device, evaluation_tokens)
        self._plans = Plans()
        self._snapshot: Source | None = None
        curve: Mapping[float, float] = {}
        if snapshot.FILE.is_file():
            self._snapshot, curve = snapshot.source()
        self.readings = Readings(self._caches, self._sliced, curve)

    # What is known at once

    def plan(self, request: Request) -> PlanView | None:
        """The plan of a setting with the other estimators' beside it, or None where nothing is known of the model yet.

        Before its calibration is there, it comes from what that has seen so far, or for the default setting from the
        snapshot, and says so.
        """
        source = self.source(request)
        return None if source is None else self._plans.view(source, request.slicing)

    def importances(self, request: Request, layer: int) -> dict[str, ImportanceCurve]:
        """Sorted importances of a layer, by module. Raises UserError as `slice_plan` does."""
        source = self.source(request)
        if source is None:
            raise UserError(NOT_CALIBRATED)
        return importance_curves(source, self._plans.plan(source, request.slicing), layer)

    def slice_plan(self, request: Request) -> SlicePlan:
        """What goes from every layer. Raises UserError where nothing is known of the model or too much is asked."""
        source = self.source(request)
        if source is None:
            raise UserError(NOT_CALIBRATED)
        return self._plans.plan(source, request.slicing)

    def settling(self, request: Request) -> SettlingView | None:
        """How the ratios came to rest while the calibration grew; None where that is not known.

        Raises UserError as `slice_plan` does.
        """
        key, config = request.calibration, request.slicing
        best = self.calibrations.best(key)
        if best is None:
            return None
        earlier = [(count, source) for count, source in self.calibrations.settling(key) if count < best.sequences]
        if ESTIMATORS[config.estimator].importance:  # one of somebody's own may be newer than what is kept
            earlier = [kept for kept in earlier if config.estimator in kept[1].profile.estimators]
        plans = {count: self._plans.plan(source, config) for count, source in earlier}
        if not plans:
            return None
        return settling_view(plans | {best.sequences: self.slice_plan(request)}, len(best.tokens))

    def sequences(self, request: Request) -> int:
        """On how many sequences the model is calibrated by now."""
        best = self.calibrations.best(request.calibration)
        return best.sequences if best else 0

    def is_calibrated(self, request: Request) -> bool:
        """Whether the model and its whole calibration are in memory."""
        return self.calibrations.whole(request.calibration) is not None

    def is_sliced(self, request: Request, method: str = "intraslice") -> bool:
        """Whether the sliced model of these settings is in memory, or no other than the dense one."""
        sliced = self._caches.slices.get(request.slice_key(method))
        return request.slicing.sparsity == 0 or (sliced is not None and sliced.sequences == self.sequences(request))

    def perplexities(self, request: Request) -> Perplexities:
        """Whatever has been measured for this setting, and what is to be expected where nothing has."""
        best = self.calibrations.best(request.calibration)
        return self.readings.perplexities(request, best)

    def memory(self, model: str) -> str:
        """What a model needs, in words. Raises UserError when there is no such model, or it will not fit."""
        estimate = require_memory(model_name(model), getattr(torch, default_precision()), self.device)
        return lazy_gettext(
            "{millions:,.0f} M parameters; slicing takes {needed:.1f} GiB, {available:.1f} GiB are free.",
            millions=estimate.parameters / 1e6,
            needed=estimate.needed / 2**30,
            available=estimate.available / 2**30,
        )

    # Jobs

    def prepare(self, request: Request, client: str) -> Iterator[Status]:
        """Load and calibrate, or find both in memory; ends with a ready or an error status.

        In the background, once there is enough to go on with.
        """

        def work(job: Job) -> None:
            with self.calibrations.holding(job, request.calibration):
                self.calibrations.calibrate(job, request.calibration, whole=False)
                job.urgency = Urgency.BACKGROUND
                calibrated = self.calibrations.calibrate(job, request.calibration)
            job.emit(self.ready(request))

            def find(job: Job) -> None:
                find_axes(calibrated.loaded.model, calibrated.stats, progress=lambda _: job.checkpoint())

            # So that nobody waits for them later.
            axes = ("axes", request.calibration)
            self.jobs.scheduler.start("nobody", lambda job: job.share(axes, find), Urgency.BACKGROUND)

        yield from self.jobs.run(client, "prepare", work)

    def measure(self, request: Request, client: str) -> Iterator[Status]:
        """Slice, then take dense and sliced perplexity; ends with a ready or an error status, or nothing if stopped.

        While the calibration grows, again whenever there is more.
        """
        live = request.is_live
        follows: dict[str, Any] = {"request": request} if live else {}
        work = partial(self.measure_perplexities, request=request, whole=not live)
        yield from self.jobs.run(client, "measure", work, **follows)

    def prefetch(self, request: Request, client: str) -> None:
        """Begin what releasing the slider would, once it has rested for a moment; the next move ends it."""
        live = request.is_live and self.is_calibrated(request)
        if live and self.readings.perplexity(request.slice_key("intraslice")) is None:
            work = partial(self.measure_perplexities, request=request)
            self.jobs.prefetch(client, work, request=request)

    def ready(self, request: Request) -> Status:
        """What is loaded and calibrated, as a job's last status."""
        key = request.calibration
        best = self.calibrations.best(key)
        if best is None:  # the dense model needs none
            return Status(lazy_gettext("Ready"), "ready")
        known = {"source": best.loaded.source, "dtype": key.dtype, "length": key.config.length}
        known |= {"sequences": best.sequences, "all": len(best.tokens), "text": describe_text(key.config.text)}
        whole = lazy_gettext("{source}, {dtype}. Calibrated on {sequences} x {length} tokens: {text}", **known)
        part = lazy_gettext(
            "{source}, {dtype}. Calibrated on {sequences} of {all} sequences so far, x {length} tokens: {text}", **known
        )
        return Status(whole if best.is_whole else part, "ready")

    def threads(self) -> str:
        """What speeds on a CPU are measured on, such as " on 2 CPU threads"; nothing on another device."""
        if self.device != "cpu":
            return ""
        count = torch.get_num_threads()
        return lazy_gettext(" on {count} CPU threads", count=count) if count > 1 else lazy_gettext(" on 1 CPU thread")

    def calibrated(self, request: Request) -> Calibrated:
        """The model and its whole calibration, once they are there. Raises UserError before that."""
        calibrated = self.calibrations.whole(request.calibration)
        if calibrated is None:
            raise UserError(NOT_CALIBRATED)
        return calibrated

    def source(self, request: Request) -> Source | None:
        """Where plans of this model and text come from: its calibration, for the default also the snapshot."""
        best = self.calibrations.best(request.calibration)
        if best is not None:
            return best.source
        return self._snapshot if request.is_default_calibration else None

    # What a job does

    def slice(self, job: Job, request: Request, method: str = "intraslice", whole: bool = True) -> PreTrainedModel:
        """The sliced model, made now or found in memory; the dense one where nothing is removed.

        Made by the whole calibration, or if that is not wanted by what it has seen so far.
        """
        calibrated = self.calibrations.calibrate(job, request.calibration, whole)
        return self._sliced(job, request.slice_key(method), calibrated)

    def measure_perplexities(self, job: Job, request: Request, whole: bool = True) -> None:
        """What `measure` does; with `whole` by the whole calibration alone."""
        sequences, calibrated = 0, None
        with self.calibrations.holding(job, request.calibration):
            while calibrated is None or not calibrated.is_whole:
                calibrated = self.calibrations.calibrate(job, request.calibration, whole, more_than=sequences)
                self.readings.losses(job, request.slice_key(DENSE), calibrated)
                if request.slicing.sparsity:
                    self.readings.losses(job, request.slice_key("intraslice"), calibrated)
                sequences = calibrated.sequences
                if not calibrated.is_whole:
                    job.urgency = Urgency.BACKGROUND
        job.emit(self.ready(request))

    def _sliced(self, job: Job, key: SliceKey, calibrated: Calibrated) -> PreTrainedModel:
        loaded, stats, method = calibrated.loaded, calibrated.stats, key.method
        if key.config.sparsity == 0:
            return loaded.model

        def make(job: Job) -> PreTrainedModel:
            plan = plan_by(method, loaded.model, stats, key.config)
            is_own = method == "intraslice"
            words = (
                lazy_gettext("Slicing, layer") if is_own else lazy_gettext("Slicing ({method}), layer", method=method)
            )
            tokens, training = calibrated.tokens, calibrated.training
            reports: dict[str, ProgressCallback] = {}  # by their text; each counts its time from its first event

            def progress(event: Progress) -> None:
                text = RECOVERY_STAGES.get(event.stage, words)
                if text not in reports:
                    reports[text] = job_progress(job, text)
                reports[text](event)

            sliced = slice_by(method, loaded.model, plan, stats, tokens, training, progress=progress)
            self._caches.slices.put(key, CachedEntry(sliced, calibrated.sequences))
            return sliced

        cached = self._caches.slices.get(key)
        if cached is not None and cached.sequences == calibrated.sequences:
            return cached.value
        return job.share(("slice", key, calibrated.sequences), make)
