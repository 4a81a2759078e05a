"""Models and their calibrations: loaded and made when they are needed, and used while they are still being made.

A calibration's sums are valid after every sequence, so plans and slices come from what is there, and are replaced when
there is more.
"""

from __future__ import annotations

from contextlib import AbstractContextManager
from dataclasses import dataclass
from itertools import takewhile
from operator import itemgetter
from pathlib import Path

import torch

from components.i18n.language import lazy_gettext
from components.jobs.job import Job
from components.jobs.jobs import job_progress
from components.jobs.places import Places
from components.jobs.status import Status
from components.state.caches import Caches, return_freed_memory
from components.state.choices import describe_text
from components.state.plan_views import Source
from components.state.request import CalibrationKey
from components.state.snapshots.settling import keep_profile, kept_profiles
from intraslice import data
from intraslice.calibration.driver import calibrate
from intraslice.calibration.stats import CalibrationStats
from intraslice.core.errors import UserError
from intraslice.core.progress import Progress
from intraslice.loading import LoadedModel, load_model
from intraslice.pretrained.memory import calibration_bytes, require_calibration_memory

READERS = Places(2, lazy_gettext("Waiting for other uploads to be read"))
ENOUGH = 4  # sequences, before anything is sliced: of fewer a slice says little


@dataclass(frozen=True)
class Calibrated:
    """A model with its calibration, on the first `sequences` of its tokens, and what is derived from it once."""

    loaded: LoadedModel
    stats: CalibrationStats
    training: torch.Tensor  # (more, length): the calibration's tokens, and what follows them, for methods that train
    tokens: torch.Tensor  # (sequences, length), all of the calibration's
    windows: torch.Tensor  # held-out text (windows, window)
    source: Source
    sequences: int

    @property
    def is_whole(self) -> bool:
        """Whether all sequences are in it."""
        return self.sequences == len(self.tokens)

    @property
    def is_enough(self) -> bool:
        """Whether it is worth slicing by."""
        return self.is_whole or self.sequences >= ENOUGH


class Calibrations:
    """By what they are made of. Methods that take a `job` run in it; who wants the same shares the work."""

    def __init__(self, caches: Caches, device: str, evaluation_tokens: int) -> None:
        self._caches, self._device, self._evaluation_tokens = caches, device, evaluation_tokens
        self._queue: dict[Job, int] = {}  # bytes of those that go on or wait for memory, in their order

    def best(self, key: CalibrationKey) -> Calibrated | None:
        """What a calibration has come to so far."""
        return self._caches.calibrations.get(key)

    def whole(self, key: CalibrationKey) -> Calibrated | None:
        """A calibration that has seen all its sequences."""
        calibrated = self.best(key)
        return calibrated if calibrated is not None and calibrated.is_whole else None

    def settling(self, key: CalibrationKey) -> list[tuple[int, Source]]:
        """What plans were made of while the calibration grew: after how many sequences, and what."""
        return self._caches.settling.get(key) or []

    def load(self, job: Job, key: CalibrationKey) -> LoadedModel:
        """The dense model, ready for use. Raises UserError where it cannot be had or is sliced already."""
        return job.share(("model", key.model, key.dtype), lambda job: self._load(job, key))

    def calibrate(self, job: Job, key: CalibrationKey, whole: bool = True, more_than: int = 0) -> Calibrated:
        """Calibrate on all sequences; without `whole` until it is worth slicing, on `more_than` so many sequences."""

        def found() -> Calibrated | None:
            calibrated = self.best(key)
            is_enough = calibrated is not None and calibrated.is_enough and calibrated.sequences > more_than
            return self.whole(key) or (calibrated if is_enough and not whole else None)

        while (calibrated := found()) is None:  # others' may have pushed it out of memory at once
            with job.begin(("calibration", key), lambda job: self._calibrate(job, key)) as calibration:
                if calibration.wait(until=lambda: found() is not None):
                    calibration.result()  # or it raises what went wrong
        return calibrated

    def holding(self, job: Job, key: CalibrationKey) -> AbstractContextManager[None]:
        """While open, what has been calibrated so far is not given up."""
        return job.holding(("calibration", key))

    def _load(self, job: Job, key: CalibrationKey) -> LoadedModel:
        loaded = self._caches.models.get(key[:2])
        if loaded is None:
            job.emit(Status(lazy_gettext("Loading {model}", model=key.model)))
            with job.waiting():
                loaded = load_model(
                    key.model, getattr(torch, key.dtype), self._device, progress=lambda _: job.require_wanted()
                )
            if loaded.made is not None:
                raise UserError(lazy_gettext("{model} is already sliced. Choose a dense model.", model=key.model))
            self._caches.models.put(key[:2], loaded)
        return loaded

    def _calibrate(self, job: Job, key: CalibrationKey) -> None:
        if self.whole(key) is not None:
            return
        loaded = self.load(job, key)
        model, config = loaded.model, key.config
        # Twice the sums: what has been seen so far is copied for use.
        sizes = model.config, config.sequences, config.length, model.dtype
        try:
            self._wait_for_memory(job, calibration_bytes(*sizes, copies=2))
            require_calibration_memory(*sizes, self._device, copies=2)
            self._calibrate_now(job, key, loaded)
        finally:
            self._queue.pop(job, None)

    def _wait_for_memory(self, job: Job, needed: int) -> None:
        """Wait until those who came before leave room for `needed` bytes. Who is the first waits for nobody."""
        self._queue[job] = needed
        while before := list(takewhile(lambda other: other is not job, self._queue)):
            if sum(self._queue[other] for other in before) + needed <= self._caches.rest:
                return
            job.emit(Status(lazy_gettext("Waiting for memory; calibrations ahead: {count}", count=len(before))))
            job.sleep(0.5)

    def _calibrate_now(self, job: Job, key: CalibrationKey, loaded: LoadedModel) -> None:
        job.emit(Status(lazy_gettext("Reading text: {text}", text=describe_text(key.config.text))))
        evaluation = key.evaluation(self._evaluation_tokens)
        with READERS.taken(job):
            training = data.training_tokens(loaded.tokenizer, key.config, evaluation.text)
            windows = data.evaluation_tokens(loaded.tokenizer, evaluation, key.config.text)
        tokens, head_weights = training[: key.config.sequences], loaded.model.lm_head.weight.numel()
        self._caches.settling.put(
            key,
            [(count, Source(profile, head_weights, key, count)) for count, profile in kept_profiles(loaded, tokens)],
        )
        report = job_progress(job, lazy_gettext("Calibrating {model}, sequence", model=Path(key.model).name))

        def keep(event: Progress, stats: CalibrationStats, sequences: int) -> None:
            """Let everybody use what the first `sequences` gave; repeats `event` while that is prepared."""
            profile = stats.make_profile(progress=lambda _: report(event))
            stats.ranked_neurons = {}  # the slider slices often
            words = so_far(sequences, len(tokens))
            source = Source(profile, head_weights, key, sequences, words)
            if words:
                keep_profile(loaded, tokens, sequences, profile)
                others = [entry for entry in self.settling(key) if entry[0] != sequences]
                self._caches.settling.put(key, sorted([*others, (sequences, source)], key=itemgetter(0)))
            self._caches.calibrations.put(key, Calibrated(loaded, stats, training, tokens, windows, source, sequences))

        following, last = 1, Progress("calibrate", 0, 0)  # it is kept whenever its sequences have doubled

        def progress(event: Progress) -> None:
            nonlocal following, last
            last = event
            report(event)
            if event.partial is not None and following <= event.done < event.total:
                keep(event, event.partial(), event.done)
                following = 2 * event.done

        stats = calibrate(loaded, tokens, progress=progress)
        keep(last, stats, len(tokens))
        return_freed_memory()  # its backward passes took much; the C library would keep that for this thread


def so_far(sequences: int, of: int) -> str:
    """On how many sequences a calibration has come by now; nothing of a whole one."""
    if sequences == of:
        return ""
    return lazy_gettext("Calibrated on {sequences} of {of} sequences so far.", sequences=sequences, of=of)
