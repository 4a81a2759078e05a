"""What every tab's files share of the library: loaded models, bounded caches, and jobs that can be stopped.

Everything is kept by what it was made of (model, text, settings), never by who asked, and is read-only once made, so
people share work and nobody can disturb another's slice. All heavy work is done in jobs (`components/jobs/`).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from transformers import PreTrainedModel

from components.i18n.language import later
from components.jobs.job import Job
from components.jobs.jobs import Jobs, job_progress
from components.jobs.scheduler import Scheduler
from components.jobs.status import Status
from components.jobs.turns import Urgency
from components.state.caches import CachedEntry, Caches
from components.state.calibrations import Calibrated, Calibrations
from components.state.choices import ESTIMATORS
from components.state.keys import (
    calibration_key,
    described,
    is_usual,
    model_name,
    precision,
    slice_config,
    slice_key,
)
from components.state.plan_views import Source, importance_curves, plan_view, settling_view
from components.state.readings import Readings
from components.state.settings import Settings
from components.state.snapshots import plan as snapshot
from components.state.views import ImportanceCurve, Perplexities, PlanView, SettlingView
from intraslice.core.config import SliceConfig
from intraslice.core.errors import UserError
from intraslice.loading import SUGGESTED_MODELS, require_memory
from intraslice.methods.crossmodule_bases import find_axes
from intraslice.methods.registry import plan_by, slice_by
from intraslice.planning.ratios import SlicePlan, make_plan
from intraslice.pretrained.memory import available_bytes
from intraslice.pretrained.precision import AUTO, choose_device

TEXTS = ("default", "wikitext2")
NOT_CALIBRATED = later("this model is not calibrated on this text yet; press Load and calibrate")


class Session:
    """One for the whole app. `client` is any string that tells open pages apart.

    Args:
        evaluation_tokens: how many tokens every perplexity on the page is taken on.
    """

    models = SUGGESTED_MODELS
    texts = TEXTS

    def __init__(self, device: str = AUTO, evaluation_tokens: int = 2560) -> None:
        self.device = choose_device(device)
        self.evaluation_tokens = evaluation_tokens
        self.jobs = Jobs(Scheduler(initialise=partial(torch.set_num_threads, torch.get_num_threads())))
        self._caches = Caches(available_bytes(self.device))
        self.calibrations = Calibrations(self._caches, self.device, evaluation_tokens)
        self._snapshot: Source | None = None
        curve: Mapping[float, float] = {}
        if snapshot.FILE.is_file():
            self._snapshot, curve = snapshot.source()
        self.readings = Readings(self._caches, self._sliced, curve)

    # What is known at once

    def plan(self, settings: Settings) -> PlanView | None:
        """The plan of a setting with the other estimators' beside it, or None where nothing is known of the model yet.

        Before its calibration is there, it comes from what that has seen so far, or for the default setting from the
        snapshot, and says so.
        """
        config = slice_config(settings)
        source = self.source(settings)
        if source is None:
            return None
        others = {
            name: self._plan(settings, source, replace(config, estimator=name, locked=()))
            for name in reversed(ESTIMATORS)  # the first, which is the usual one, is drawn last and so above the others
            if (name in source.profile.estimators or not ESTIMATORS[name].importance)
            and (name != config.estimator or config.locked)
        }
        return plan_view(self._plan(settings, source, config), source, others)

    def importances(self, settings: Settings, layer: int) -> dict[str, ImportanceCurve]:
        """Sorted importances of a layer, by module. Raises UserError as `slice_plan` does."""
        source = self.source(settings)
        if source is None:
            raise UserError(NOT_CALIBRATED)
        return importance_curves(source, self._plan(settings, source, slice_config(settings)), layer)

    def slice_plan(self, settings: Settings) -> SlicePlan:
        """What goes from every layer. Raises UserError where nothing is known of the model or too much is asked."""
        source = self.source(settings)
        if source is None:
            raise UserError(NOT_CALIBRATED)
        return self._plan(settings, source, slice_config(settings))

    def settling(self, settings: Settings) -> SettlingView | None:
        """How the ratios came to rest while the calibration grew; None where that is not known.

        Raises UserError as `slice_plan` does.
        """
        key, config = calibration_key(settings), slice_config(settings)
        best = self.calibrations.best(key)
        if best is None:
            return None
        earlier = [(count, source) for count, source in self.calibrations.settling(key) if count < best.sequences]
        if ESTIMATORS[config.estimator].importance:  # one of somebody's own may be newer than what is kept
            earlier = [kept for kept in earlier if config.estimator in kept[1].profile.estimators]
        plans = {count: self._plan(settings, source, config) for count, source in earlier}
        if not plans:
            return None
        return settling_view(plans | {best.sequences: self.slice_plan(settings)}, len(best.tokens))

    def sequences(self, settings: Settings) -> int:
        """On how many sequences the model is calibrated by now."""
        best = self.calibrations.best(calibration_key(settings))
        return best.sequences if best else 0

    def is_calibrated(self, settings: Settings) -> bool:
        """Whether the model and its whole calibration are in memory."""
        return self.calibrations.whole(calibration_key(settings)) is not None

    def is_sliced(self, settings: Settings, method: str = "intraslice") -> bool:
        """Whether the sliced model of these settings is in memory, or no other than the dense one."""
        sliced = self._caches.slices.get(slice_key(settings, method))
        return settings.sparsity == 0 or (sliced is not None and sliced.sequences == self.sequences(settings))

    def perplexities(self, settings: Settings) -> Perplexities:
        """Whatever has been measured for this setting, and what is to be expected where nothing has."""
        best = self.calibrations.best(calibration_key(settings))
        return self.readings.perplexities(settings, best)

    def memory(self, model: str) -> str:
        """What a model needs, in words. Raises UserError when there is no such model, or it will not fit."""
        estimate = require_memory(model_name(model), getattr(torch, precision(Settings())), self.device)
        return later(
            "{millions:,.0f} M parameters; slicing takes {needed:.1f} GiB, {available:.1f} GiB are free.",
            millions=estimate.parameters / 1e6,
            needed=estimate.needed / 2**30,
            available=estimate.available / 2**30,
        )

    # Jobs

    def prepare(self, settings: Settings, client: str) -> Iterator[Status]:
        """Load and calibrate, or find both in memory; ends with a ready or an error status.

        In the background, once there is enough to go on with.
        """

        def work(job: Job) -> None:
            with self.calibrations.holding(job, settings):
                self.calibrations.calibrate(job, settings, whole=False)
                job.urgency = Urgency.BACKGROUND
                calibrated = self.calibrations.calibrate(job, settings)
            job.emit(self.ready(settings))

            def find(job: Job) -> None:
                find_axes(calibrated.loaded.model, calibrated.stats, progress=lambda _: job.checkpoint())

            # So that nobody waits for them later.
            axes = ("axes", calibration_key(settings))
            self.jobs.scheduler.start("nobody", lambda job: job.share(axes, find), Urgency.BACKGROUND)

        yield from self.jobs.run(client, "prepare", work)

    def measure(self, settings: Settings, client: str) -> Iterator[Status]:
        """Slice, then take dense and sliced perplexity; ends with a ready or an error status, or nothing if stopped.

        While the calibration grows, again whenever there is more.
        """
        live = settings.order == "one-shot"
        follows: dict[str, Any] = {"settings": settings} if live else {}
        work = partial(self.measure_perplexities, settings=settings, whole=not live)
        yield from self.jobs.run(client, "measure", work, **follows)

    def prefetch(self, settings: Settings, client: str) -> None:
        """Begin what releasing the slider would, once it has rested for a moment; the next move ends it."""
        live = settings.order == "one-shot" and self.is_calibrated(settings)
        if live and self.readings.perplexity(settings, "intraslice") is None:
            work = partial(self.measure_perplexities, settings=settings)
            self.jobs.prefetch(client, work, settings=settings)

    def ready(self, settings: Settings) -> Status:
        """What is loaded and calibrated, as a job's last status."""
        key = calibration_key(settings)
        best = self.calibrations.best(key)
        if best is None:  # the dense model needs none
            return Status(later("Ready"), "ready")
        known = {"source": best.loaded.source, "dtype": key.dtype, "length": key.config.length}
        known |= {"sequences": best.sequences, "all": len(best.tokens), "text": described(key.config.text)}
        whole = later("{source}, {dtype}. Calibrated on {sequences} x {length} tokens: {text}", **known)
        part = later(
            "{source}, {dtype}. Calibrated on {sequences} of {all} sequences so far, x {length} tokens: {text}", **known
        )
        return Status(whole if best.is_whole else part, "ready")

    def threads(self) -> str:
        """What speeds on a CPU are measured on, such as " on 2 CPU threads"; nothing on another device."""
        if self.device != "cpu":
            return ""
        count = torch.get_num_threads()
        return later(" on {count} CPU threads", count=count) if count > 1 else later(" on 1 CPU thread")

    def calibrated(self, settings: Settings) -> Calibrated:
        """The model and its whole calibration, once they are there. Raises UserError before that."""
        calibrated = self.calibrations.whole(calibration_key(settings))
        if calibrated is None:
            raise UserError(NOT_CALIBRATED)
        return calibrated

    def source(self, settings: Settings) -> Source | None:
        """Where plans of this model and text come from: its calibration, for the default also the snapshot."""
        best = self.calibrations.best(calibration_key(settings))
        if best is not None:
            return best.source
        return self._snapshot if is_usual(settings) else None

    # What a job does

    def slice(self, job: Job, settings: Settings, method: str = "intraslice", whole: bool = True) -> PreTrainedModel:
        """The sliced model, made now or found in memory; the dense one where nothing is removed.

        Made by the whole calibration, or if that is not wanted by what it has seen so far.
        """
        calibrated = self.calibrations.calibrate(job, settings, whole)
        return self._sliced(job, settings, method, calibrated)

    def measure_perplexities(self, job: Job, settings: Settings, whole: bool = True) -> None:
        """What `measure` does; with `whole` by the whole calibration alone."""
        sequences, calibrated = 0, None
        with self.calibrations.holding(job, settings):
            while calibrated is None or not calibrated.is_whole:
                calibrated = self.calibrations.calibrate(job, settings, whole, more_than=sequences)
                self.readings.losses(job, settings, "dense", calibrated)
                if settings.sparsity:
                    self.readings.losses(job, settings, "intraslice", calibrated)
                sequences = calibrated.sequences
                if not calibrated.is_whole:
                    job.urgency = Urgency.BACKGROUND
        job.emit(self.ready(settings))

    def _sliced(self, job: Job, settings: Settings, method: str, calibrated: Calibrated) -> PreTrainedModel:
        loaded, stats, config = calibrated.loaded, calibrated.stats, slice_config(settings)
        if config.sparsity == 0:
            return loaded.model
        key = slice_key(settings, method)

        def make(job: Job) -> PreTrainedModel:
            plan = plan_by(method, loaded.model, stats, key[1])
            is_own = method == "intraslice"
            words = later("Slicing, layer") if is_own else later("Slicing ({method}), layer", method=method)
            progress, training = job_progress(job, words), calibrated.training
            sliced = slice_by(method, loaded.model, plan, stats, calibrated.tokens, training, progress=progress)
            self._caches.slices.put(key, CachedEntry(sliced, calibrated.sequences))
            return sliced

        cached = self._caches.slices.get(key)
        if cached is not None and cached.sequences == calibrated.sequences:
            return cached.value
        return job.share(("slice", key, calibrated.sequences), make)

    def _plan(self, settings: Settings, source: Source, config: SliceConfig) -> SlicePlan:
        key = (calibration_key(settings), source.sequences, config)
        return self._caches.plans.get(key) or self._caches.plans.put(key, make_plan(source.profile, config))
